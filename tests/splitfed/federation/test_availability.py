"""Who is there and for how long: draws that depend on nothing but their key, traces, and what a scenario may say."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.cli import main as cli
from splitfed.errors import RunError, ScenarioError
from splitfed.federation.availability import Drawn
from splitfed.federation.trace import Presence, read_trace
from splitfed.link.clock import Course, Exchange, Site, Step
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key
from splitfed.server.clock.plan import planned
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.deployment.serve import deployed

PHONES = {"dropout": 0.3, "away": 0.2, "late": {"kind": "exponential", "mean": 20.0},
          "step_seconds": {"kind": "lognormal", "median": 2.0, "sigma": 0.7}}  # fmt: skip


def test_a_draw_depends_on_seed_round_and_client_alone() -> None:
    pairs = [(round, client) for round in range(1, 20) for client in range(20)]
    one, other = (Drawn(**PHONES).open(Key(seed).at("availability"), 20, Path()) for seed in (3, 4))

    def all_of(drawn, pairs) -> dict:
        return {pair: (drawn.away(*pair), drawn.presence(*pair, 9)) for pair in pairs}

    assert all_of(one, pairs) == all_of(one, pairs[::-1]) == all_of(one, pairs)
    assert all_of(one, pairs) != all_of(other, pairs)
    # A slow phone stays slow, whatever the round; it is not always as late.
    assert len({one.presence(round, 7, 9).step_seconds for round in range(1, 20)}) == 1
    assert len({one.presence(round, 7, 9).late for round in range(1, 20)}) == 19
    # Nor does one setting move what another draws.
    calm = Drawn(**(PHONES | {"dropout": 0.0, "away": 0.0})).open(Key(3).at("availability"), 20, Path())
    assert [calm.presence(*pair, 9).late for pair in pairs] == [one.presence(*pair, 9).late for pair in pairs]


def test_draws_follow_what_they_are_drawn_from() -> None:
    drawn, pairs = Drawn(**PHONES).open(Key(0), 5000, Path()), [(1, client) for client in range(5000)]
    found = [drawn.presence(*pair, 4) for pair in pairs]
    moments = [one.vanishes_after for one in found if one.vanishes_after is not None]
    # Five standard errors.
    assert len(moments) / 5000 == pytest.approx(0.3, abs=0.033)
    assert [moments.count(step) / len(moments) for step in range(4)] == pytest.approx([0.25] * 4, abs=0.056)
    assert np.mean([drawn.away(*pair) for pair in pairs]) == pytest.approx(0.2, abs=0.029)
    assert np.mean([one.late for one in found]) == pytest.approx(20, abs=1.5)
    logs = np.log([one.step_seconds for one in found])
    assert (logs.mean(), logs.std()) == (pytest.approx(np.log(2), abs=0.05), pytest.approx(0.7, abs=0.035))
    even = Drawn.model_validate({"late": {"kind": "uniform", "low": 1.0, "high": 3.0}}).open(Key(0), 9, Path())
    late = [even.presence(*pair, 1).late for pair in pairs]
    assert 1 <= min(late) < 1.01 < 2.99 < max(late) < 3
    assert even.presence(1, 1, 1).step_seconds is None


def trace(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_trace_says_it_for_a_round_or_for_every_round(tmp_path: Path) -> None:
    found = read_trace(trace(tmp_path, (
        "\ufeffclient,round,away,late,step_seconds,vanishes_after\r\n"
        "0,,0,5,0.5,\r\n"
        "0,2,1,,,\r\n\r\n"
        " 1 ,3,,1e1,,0\r\n"
        '2,,"1",,,\r\n'
        "2,4,,,,\r\n"
    )), 4)  # fmt: skip
    slow, stays = Presence(5.0, 0.5), Presence()
    assert [found.presence(round, 0, 9) for round in (1, 3)] == [slow, slow]
    assert [found.away(round, 0) for round in (1, 2, 3)] == [False, True, False]
    assert [found.presence(round, 1, 9) for round in (2, 3)] == [stays, Presence(10.0, None, 0)]
    assert [found.away(round, 2) for round in (1, 4, 5)] == [True, False, True]
    assert (found.away(1, 3), found.presence(1, 3, 9)) == (False, stays)
    assert read_trace(trace(tmp_path, "away,client\n1,2\n"), 4).away(7, 2)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["1: the first line must name the columns, and 'client' among them; known: client, round, "]),
        ("round,away\n", ["1: the first line must name the columns, and 'client'"]),
        ("client,lat\n", ["1: unknown column 'lat', did you mean 'late'?; known: client, "]),
        ("client,late,late\n", ["1: the column 'late' is there twice"]),
        ("client,late\n0,1,2\n1\n", ["2: 3 fields, where the header names 2", "3: 1 fields, where"]),
        ("client,late\n,1\nx,1\n-1,1\n4,1\n1.0,1\n", ["2: client: is missing"] + [
            f"{line}: client: must be one of the scenario's clients, 0 to 3, not '{text}'"
            for line, text in enumerate(("x", "-1", "4", "1.0"), 3)
        ]),
        ("client,round,late\n7,-1,-2\n", ["2: client: must be", "2: round: must be a whole", "2: late: must be"]),
        ("client,late\n0,-1\n1,soon\n2,nan\n3,inf\n", [
            f"{line}: late: must be a number of seconds from 0 to 1e+09, not '{text}'"
            for line, text in enumerate(("-1", "soon", "nan", "inf"), 2)
        ]),
        ("client,step_seconds\n0,-2\n", ["2: step_seconds: must be a number of seconds"]),
        ("client,away\n0,2\n1,yes\n", ["2: away: must be 0 or 1, not '2'", "3: away: must be 0 or 1, not 'yes'"]),
        ("client,round\n0,0\n0,1.5\n", ["2: round: must be a whole number from 1 on", "3: round: must be"]),
        ("client,vanishes_after\n0,-1\n0,99999999999\n", ["2: vanishes_after: must be", "3: vanishes_after: must be"]),
        ("client,round\n1,\n1,2\n\n1,2\n1,\n", [
            "5: client 1 is listed for round 2 already, in line 3",
            "6: client 1 is listed for every round already, in line 2",
        ]),
        (b"client\n0\n\xff\n", ["3: not UTF-8 text"]),
        ('client,late\n0,"' + "x" * 200_000 + '"\n', ["2: no CSV: "]),
        ("client\n" + "x\n" * 30, [f"{line}: client: must be" for line in range(2, 22)] + [" and 10 more mistakes"]),
    ],
)  # fmt: skip
def test_every_mistake_of_a_trace_is_a_line(text: str | bytes, problems: list[str], tmp_path: Path) -> None:
    path = trace(tmp_path, text)
    with pytest.raises(ScenarioError) as caught:
        read_trace(path, 4)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(f"{path}:{expected}")
        assert "\n" not in found


def test_a_trace_is_checked_with_its_scenario(tmp_path, monkeypatch, capsys) -> None:
    def validate() -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["splitfed", "validate", "here.yaml"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert all(line.startswith("here.yaml:") for line in said.splitlines())
        return int(end.value.code or 0), re.sub(
            r"^here\.yaml:\d+: federation\.availability\.file: ", "", said, flags=re.M
        )

    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text(small("federation.availability={kind: trace, file: own/trace.csv}").to_yaml())
    assert validate() == (
        2, "own/trace.csv: cannot be read: No such file or directory\n"
    )  # fmt: skip
    Path("own").mkdir()
    trace(Path("own"), "client,late\n3,1\n0,-1\n")
    code, told = validate()
    assert code == 2
    assert told.splitlines() == [
        "own/trace.csv:2: client: must be one of the scenario's clients, 0 to 2, not '3'",
        "own/trace.csv:3: late: must be a number of seconds from 0 to 1e+09, not '-1'",
    ]
    trace(Path("own"), "client,late\n2,1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["splitfed", "validate", "here.yaml"])
        cli.app(["validate", "here.yaml"], standalone_mode=False)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["federation.availability={kind: drawn, dropout: 1.0}"], "availability.dropout: must be less than 1, not 1.0"),
        (["federation.availability={kind: drawn, late: -1}"], "late: must be a number of seconds from 0 to 1e+09, not"),
        (["federation.availability={kind: drawn, late: {kind: uniform, low: 3, high: 1}}"], "low is 3, more than high"),
        (["federation.availability={kind: drawn, late: {kind: unifrm}}"], "late: unknown kind 'unifrm'"),
        (["federation.availability=trace"], "availability.file: is missing"),
        (["federation.oversample=1.5"], "oversample: all 3 clients are sampled already: set a smaller cohort"),
        (["federation.oversample=0.5"], "oversample: must be at least 1"),
        (["federation.oversample=1.5", "federation.cohort=2"], "oversample: nothing tells the time of a simulation"),
        (["federation.deadline=9"], "deadline: nothing tells the time of a simulation: set federation.availability or"),
        (["federation.deadline=0"], "deadline: must be greater than 0, not 0"),
        (["engine=deployment", "federation.availability=drawn"], "availability: a deployment's clients have their own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(overrides: list[str], why: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        small(*overrides)
    (problem,) = caught.value.problems
    assert f"federation.{why}" in problem or why in problem


def test_a_deployment_has_a_deadline_and_no_drawn_clients() -> None:
    plan = small("engine=deployment", "federation.deadline=9", "federation.cohort=2", "federation.oversample=1.2")
    assert plan.federation.sampled == 3
    assert isinstance(deployed(plan).engine, Deployment)
    with pytest.raises(RunError, match=r"^federation\.availability: a deployment's clients have their own"):
        deployed(small("federation.availability=drawn"))


@pytest.mark.parametrize(
    ("cohort", "oversample", "sampled"), [(10, 1.0, 10), (10, 1.1, 11), (10, 1.01, 11), (20, 2, 30)]
)
def test_more_are_sampled_as_it_is_written(cohort: int, oversample: float, sampled: int) -> None:
    clients = ["federation.clients=30", "federation.availability=drawn"]
    plan = small(*clients, f"federation.cohort={cohort}", f"federation.oversample={oversample}")
    assert (plan.federation.sampled, plan.federation.cohort_size) == (sampled, cohort)


def test_clients_alike_have_all_a_chance() -> None:
    drawn = ["federation.clients=8", "federation.cohort=2", "federation.oversample=4", "federation.availability=drawn"]
    attendance = Attendance(small(*drawn), Path())
    plans = [attendance.plan(round, dict.fromkeys(range(8), 2)) for round in range(1, 30)]
    taken = [[client for client, vanishes in plan.vanish.items() if vanishes is None] for plan in plans]
    assert {len(pair) for pair in taken} == {2}
    assert set().union(*taken) == set(range(8))
    backwards = attendance.plan(1, dict.fromkeys(range(7, -1, -1), 2))
    assert (dict(backwards.vanish), backwards.seconds) == (dict(plans[0].vanish), 2.0)


@dataclass(frozen=True)
class Stay:
    """A client's presence in a round of so many mini-batches."""

    presence: Presence
    steps: int

    def course(self) -> Course:
        late, each, after = self.presence.late, self.presence.step_seconds, self.presence.vanishes_after
        trained = self.steps if after is None else min(after, self.steps)
        steps = [Step((Exchange(each, 0, 0.0, 0),), 0.0)] * trained
        return Course(late, 0, steps, None, 0 if trained == self.steps else None, None, Key(0))


STAYS = st.dictionaries(
    st.integers(0, 9),
    st.builds(
        Stay,
        st.builds(Presence, st.integers(0, 6).map(float), st.integers(0, 3).map(float), st.none() | st.integers(0, 5)),
        st.integers(1, 4),
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(STAYS, st.integers(1, 6), st.integers(1, 20).map(float) | st.just(float("inf")))
def test_a_round_at_once_is_what_happens_event_by_event(stays: dict[int, Stay], enough: int, limit: float) -> None:
    """Against the events of the round, one after another: mini-batches, clients who finish, and clients who vanish."""
    events = []
    for client, stay in stays.items():
        late, each, after = stay.presence.late, stay.presence.step_seconds, stay.presence.vanishes_after
        trained = stay.steps if after is None else min(after, stay.steps)
        events += [(late + each * (step + 1), 0, client, "step") for step in range(trained)]
        last = "finish" if trained == stay.steps else "vanish"
        events.append((late + each * trained, 1, client, last))
    steps, taken, left, now = dict.fromkeys(stays, 0), [], set(stays), 0.0
    for moment, _, client, what in sorted(events):
        if moment > limit or (len(taken) == enough and moment > now):
            break
        if what == "step":
            steps[client] += 1
        else:
            left.discard(client)
            if len(taken) < enough:
                now = moment
                taken += [client] if what == "finish" else []
    over = min(now if len(taken) == enough or not left else limit, limit)
    plan = planned({c: stay.course() for c, stay in stays.items()}, 9, Site().together, enough, limit)
    assert plan.seconds == over
    assert plan.overdue == (len(taken) < enough and bool(left))
    assert plan.vanish == {client: None if client in taken else steps[client] for client in stays}


INFINITY = float("inf")


def stay(late: float, each: float, after: int | None = None) -> Course:
    return Stay(Presence(late, each, after), 4).course()


def test_waves_wait_for_each_other() -> None:
    stays = {5: stay(3, 1), 2: stay(0, 2, 3), 9: stay(20, 1), 0: stay(0, 1), 1: stay(0, 1)}

    def plan(wave: int, enough: int = 5, limit: float = INFINITY) -> tuple[dict[int, int | None], float]:
        found = planned(stays, wave, Site().together, enough, limit)
        assert list(found.vanish) == list(stays)[: len(found.vanish)]
        return dict(found.vanish), found.seconds

    # One by one: 5 from 3 to 7, 2 until it vanishes at 13, 9 from 20 to 24, 0 to 28, 1 to 32.
    assert plan(1) == ({5: None, 2: 3, 9: None, 0: None, 1: None}, 32.0)
    assert plan(1, 2) == ({5: None, 2: 3, 9: None}, 24.0)
    for limit, expected in [(24.0, {5: None, 2: 3, 9: None}), (26.5, {5: None, 2: 3, 9: None, 0: 2}),
                            (10.0, {5: None, 2: 1}), (2.0, {5: 0}), (15.0, {5: None, 2: 3, 9: 0})]:  # fmt: skip
        assert plan(1, limit=limit) == (expected, limit)
    # Two by two: 5 and 2 to 7, 9 from 20 to 24 and 0 from 7 to 11, 1 from 24 to 28.
    assert plan(2) == ({5: None, 2: 3, 9: None, 0: None, 1: None}, 28.0)
    assert plan(2, 2) == ({5: None, 2: 3, 9: 0, 0: None}, 11.0)
    assert plan(2, limit=9) == ({5: None, 2: 3, 9: 0, 0: 2}, 9.0)


def test_of_joint_steps_those_count_that_are_done_in_time() -> None:
    """Steps end at 7, 12, 17 and 22, as the third takes five seconds and comes at 2; the second vanishes after two."""
    stays = {1: stay(0, 1), 2: stay(0, 3, 2), 3: stay(2, 5)}
    plan = planned(stays, 3, Site(patience=60).together, 3, 20)
    assert (plan.vanish, plan.seconds) == ({1: 3, 2: 2, 3: 3}, 20)


def test_a_mode_has_its_own_time() -> None:
    """Six clients of two seconds each."""
    for settings_of, seconds in {
        ("federation.mode=sl",): 12.0, ("federation.mode=sfl-v1",): 2.0, ("federation.mode=sfl-v2",): 2.0,
        ("federation.mode=psl",): 2.0, ("federation.mode=psl", "federation.wave=4"): 4.0,
        ("federation.order=arrival", "federation.wave=2"): 6.0,
    }.items():  # fmt: skip
        scenario = small("federation.clients=6", "federation.availability=drawn", *settings_of)
        plan = Attendance(scenario, Path()).plan(1, dict.fromkeys(range(6), 2))
        assert (set(plan.vanish.values()), plan.seconds) == ({None}, seconds), settings_of
