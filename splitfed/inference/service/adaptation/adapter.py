"""The part of a service that learns: takes what clients kept, makes steps of it in a thread of its own, and has what
comes of them served, sent back and written down."""

import hashlib
import logging
import threading
from collections import Counter, defaultdict
from pathlib import Path
from queue import Full, Queue

from torch import Tensor

from splitfed.errors import RunError, SplitfedError, WireError
from splitfed.files import told
from splitfed.inference.remote.bundle import pack_norms
from splitfed.inference.remote.keeping import unpack_image
from splitfed.inference.service.adaptation import store
from splitfed.inference.service.adaptation.kept import Kept, Owner, Replay, open_jpeg, pixels
from splitfed.inference.service.adaptation.learning import Pupil
from splitfed.inference.service.adaptation.models import Learning, OtherModel, OwnModel
from splitfed.inference.service.adaptation.norms import apart, learning, numbers, take
from splitfed.inference.service.adaptation.settings import AdaptConfig, TeacherConfig
from splitfed.inference.service.backs import Back, Backs
from splitfed.inference.service.tally import NOBODY, Tally
from splitfed.seeds import Key
from splitfed.wire.frame import Packed

log = logging.getLogger(__name__)

_MOST_OWNERS = 256
_MOST_WAITING = 256  # samples that no step has been made of, beside those of a batch


class Adapter:
    """Adapts what `backs` serve within its `with` block, and keeps what has come of it in `folder`, from which it goes
    on. Raises RunError for a run whose clients could keep nothing, as it has no exit before its cut, for one without
    LayerNorms, for a teacher that does not fit, and on entry for a file that is broken or of other settings. Safe to
    call from threads."""

    def __init__(self, settings: AdaptConfig, backs: Backs, tally: Tally, folder: Path) -> None:
        self.settings, self._backs, self._tally, self._folder = settings, backs, tally, folder
        self._teacher, self._taught_by = self._find_teacher(settings.teacher)
        self._queue: Queue[tuple[int, Kept] | None] = Queue(_MOST_WAITING)
        self._working, self._over = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="splitfed-adaptation", daemon=True)
        self._begin()

    def _begin(self) -> None:
        """Begin with what was read of the run."""
        base = self._base = self._backs.base
        if base.exits is None or base.exits.blocks[0] > base.model.trunk.cut:
            raise RunError(
                "--adapt: clients keep images by what an exit before the cut says of them, and the run has none: make "
                f"one with: splitfed exits {base.model.folder} --blocks {base.model.trunk.cut}"
            )
        learning(base.model.parts, self.settings.norms)
        self._pupils: dict[Owner, Pupil] = {}
        self._waiting: defaultdict[Owner, list[tuple[int, Kept]]] = defaultdict(list)
        self._replay = Replay(self.settings.buffer)
        self._plain = base
        if self.settings.norms == "whole":
            self._plain = self._backs.adapted(
                base, base.model.parts, pack_norms(learning(base.model.parts, self.settings.norms))
            )
        self._backs.serve(base, self._plain)

    def __enter__(self) -> "Adapter":
        self._resume()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._queue.put(None)
        self._thread.join()
        with self._working:
            for pupil in self._pupils.values():
                if pupil.steps % self.settings.publish:
                    self._serve(pupil)
            if self._pupils:
                self._store()

    @property
    def side(self) -> int:
        """The pixels of a side of the images that it takes."""
        return self._base.model.scenario.model.image_size

    @property
    def steps(self) -> int:
        """The steps that were made, of all owners."""
        return sum(pupil.steps for pupil in list(self._pupils.values()))

    def take_image(self, client: int, buffer: bytes) -> tuple[Packed, int, bool]:
        """Take a frame with an image that a client kept; return it as it is counted, its number, and whether there was
        room. Raises WireError for what is no such frame."""
        frame, number, content = unpack_image(buffer, self.side)
        open_jpeg(content, self.side)
        return frame, number, self._put(client, Kept(0, content))

    def take_tokens(self, client: int, back: Back, block: int, tokens: Tensor) -> None:
        """Take what was asked of a back, and is marked as kept: what a block made of images, `[B, k, D]`."""
        if self.settings.norms == "back" and back.name in self._backs.alike:
            for row in tokens.detach().cpu():
                self._put(client, Kept(block, row.clone()))

    def _put(self, client: int, sample: Kept) -> bool:
        try:
            self._queue.put_nowait((client, sample))
        except Full:
            return False
        self._tally.images(client, "kept", 1)
        return True

    def rebase(self) -> None:
        """Begin anew where another checkpoint is served."""
        with self._working:
            if self._backs.base is not self._base:
                self._begin()
                self._resume()

    def forget(self, owner: Owner) -> None:
        """Serve the run's own norms again, to all or to a client who has some of its own. Raises WriteError."""
        with self._working:
            for one in [one for one in {None, *self._pupils} if owner in (None, one)]:
                self._pupils.pop(one, None)
                self._waiting.pop(one, None)
                self._replay.forget(one)
                self._backs.serve(self._base, self._plain if one is None else None, one)
            if owner is None:
                with told(self._folder / store.NAME):
                    (self._folder / store.NAME).unlink(missing_ok=True)
            else:
                self._store()

    def _run(self) -> None:
        while (found := self._queue.get()) is not None and not self._over:
            with self._working:
                try:
                    self._learn(*found)
                except WireError as error:
                    log.warning("client %d: %s", found[0], error)
                except SplitfedError as error:
                    log.warning("what was learnt is not kept: %s", error)
                except Exception:
                    log.exception("a step of adaptation failed; what is served stays as it is")

    def _learn(self, client: int, sample: Kept) -> None:
        owner = client if self.settings.pool == "client" else None
        if isinstance(sample.content, bytes):
            pixels(sample.content, self.side)  # here, so that no step is lost by it
        if owner not in self._pupils:
            if len(self._pupils) >= _MOST_OWNERS:
                raise WireError(f"there are norms of {_MOST_OWNERS} clients, and no more are taken")
            self._pupils[owner] = self._new(owner)
        pupil = self._pupils[owner]
        waiting = self._waiting[owner]
        waiting.append((client, sample))
        if len(waiting) < self.settings.batch:
            return
        del self._waiting[owner]
        seen = pupil.learn([one for _, one in waiting], self._replay)
        for asked, images in Counter(one for one, _ in waiting).items():
            self._tally.images(asked, "teacher", images)
        if not seen:
            log.warning("of %d kept images nothing is learnt, as a number is not finite", len(waiting))
            return
        self._tally.images(NOBODY if owner is None else owner, "student", seen)
        if pupil.steps % self.settings.publish == 0:
            self._serve(pupil)
            self._store()

    def _new(self, owner: Owner) -> Pupil:
        base, key = self._base, Key(self._base.model.scenario.seed)
        student = OwnModel(base.model, base.exits, self.settings.norms)
        teacher = self._teacher.copy() if self._teacher else OwnModel(base.model, None, self.settings.norms)
        return Pupil(owner, student, teacher, self.settings, key.at("adapt", store.name_of(owner)))

    def _serve(self, pupil: Pupil) -> None:
        base, norms = self._base, numbers(pupil.student.norms)
        parts, places = apart(base.model.parts, self.settings.norms)
        take(places, norms)
        changed = pack_norms(norms) if self.settings.norms == "whole" else b""
        self._backs.serve(base, self._backs.adapted(base, parts, changed), pupil.owner)

    def _store(self) -> None:
        pupils = {store.name_of(pupil.owner): pupil for pupil in self._pupils.values() if pupil.steps}
        store.store(
            store.Adapted(
                self._base.weights, self.settings.norms, self._taught_by, self._backs.alike,
                {name: (pupil.steps, pupil.images) for name, pupil in pupils.items()},
                {name: pupil.state() for name, pupil in pupils.items()},
            ),
            self._folder,
        )  # fmt: skip

    def _resume(self) -> None:
        """Go on from what was written down, if it is of what is served."""
        found = store.load(self._folder)
        if found is None:
            return
        if found.base != self._base.weights:
            log.warning("%s: is of other weights than those that are served: adaptation begins anew", self._folder)
            return
        said = {"norms": (found.norms, self.settings.norms), "teacher": (found.teacher, self._taught_by)}
        for key, (then, now) in said.items():
            if then != now:
                raise self._other(f"was adapted with {key}: {then}")
        self._backs.serve(self._base, self._plain, alike=found.fronts)
        for name, (steps, images) in found.learnt.items():
            owner = store.owner_of(name)
            if (owner is None) == (self.settings.pool == "client"):
                raise self._other(f"was adapted with pool: {'all' if owner is None else 'client'}")
            pupil = self._new(owner)
            try:
                pupil.load(found.states[name])
            except (KeyError, RuntimeError) as error:
                raise self._other(f"is of another model ({error})") from error
            pupil.steps, pupil.images = steps, images
            self._pupils[owner] = pupil
            self._serve(pupil)

    def _other(self, why: str) -> RunError:
        return RunError(
            f"{self._folder / store.NAME}: {why}: name the same to go on, or let go of it with: splitfed adapted "
            f"{self._base.model.folder} --forget"
        )

    def _find_teacher(self, settings: TeacherConfig | None) -> tuple[Learning | None, str]:
        """Return a teacher from elsewhere, None for the run's own, and how it is called."""
        if settings is None:
            return None, "run"
        model = self._backs.base.model
        made = OtherModel(settings, len(model.classes), model.scenario.model.image_size, model.device)
        with open(settings.weights, "rb") as file:
            return made, f"{settings.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
