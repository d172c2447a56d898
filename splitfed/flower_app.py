"""Our two apps as Flower wants to be given them: a bundle that names them and holds no code of its own."""

from collections.abc import Mapping

NAME, PUBLISHER = "splitfed", "splitfed"


def bundle(run_config: Mapping[str, str | int | float | bool]) -> bytes:
    """Return a Flower app bundle (FAB) that names the installed package's apps; nodes get `run_config` in their
    context.

    Raises ValueError where Flower would refuse it.
    """
    import tomli_w
    from flwr.cli.build import build_fab_from_files

    from splitfed import __version__

    components = {"serverapp": "splitfed.server.app:app", "clientapp": "splitfed.clients.app:app"}
    app = {"publisher": PUBLISHER, "components": components, "config": dict(run_config)}
    # No dependencies: Flower would install what they name, and both sides run what they have.
    project = {"name": NAME, "version": __version__, "description": "Federated split learning", "license": "Apache-2.0"}
    text = tomli_w.dumps({"project": {**project, "dependencies": []}, "tool": {"flwr": {"app": app}}})
    return build_fab_from_files({"pyproject.toml": text.encode()})[0]
