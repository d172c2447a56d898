"""The JSON schemas of a scenario and of a sweep, which editors complete and check files by.

Told from the classes that read these files, those of plug-ins that are installed among them. A schema says what a file
may hold as it is written: short forms, presets and sizes such as `130MB` are in it. What takes several keys to tell, as
a cohort of more than all clients does, is left to `splitfed validate`.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from splitfed.cli.listing.kinds import first_sentence, one_line
from splitfed.reports.sweep.plan import SweepFile
from splitfed.scenario import Scenario
from splitfed.scenario.document import ASIDE
from splitfed.scenario.engine import Inline
from splitfed.scenario.presets import KEY, PRESETS
from splitfed.scenario.problems import kind, sections

Schema = dict[str, Any]

_DRAFT = "http://json-schema.org/draft-07/schema#"  # the one that editors know best
_DEFS = "#/$defs/"
# Beside a `preset` sections may leave out what it says; what remains of them stands under their names with this behind.
_REFINED = "Refined"
# Where no kind is said, it is this one.
_UNSAID = Inline


# Keys of the top that are the user's own.
_ASIDES: Schema = {"patternProperties": {f"^{ASIDE}": {}}}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def scenario_schema() -> Schema:
    """Return the schema of a scenario, a draft 7 JSON schema."""
    schema = _generated(Scenario)
    _with_presets(schema)
    return {"$schema": _DRAFT, **schema, **_ASIDES, "title": "A scenario of splitfed"}


def sweep_schema() -> Schema:
    """Return the schema of a sweep: what it changes of a scenario is checked key by key."""
    scenario, sweep = _generated(Scenario), _generated(SweepFile)
    defs = scenario.pop("$defs")
    defs["Changes"] = {
        "description": "What changes of the scenario: a mapping of section.key to a value.",
        "type": "object",
        "properties": {path: _one_of(found) for path, found in sorted(_paths(scenario, defs).items())},
        "patternProperties": {r"^model\.args\.": {}},
        "additionalProperties": False,
    }
    defs["Scenario"] = scenario
    changes: Schema = {"anyOf": [{"$ref": _DEFS + "Changes"}, {"type": "null"}]}
    labels = {"type": "object", "additionalProperties": changes}
    properties = sweep["properties"]
    properties["set"] |= {"$ref": _DEFS + "Changes"}
    properties["points"]["additionalProperties"] = changes
    properties["grid"]["additionalProperties"] = {"anyOf": [labels, {"type": "array", "minItems": 1}]}
    seeds = properties["seeds"]
    properties["seeds"] = {
        "description": seeds.pop("description"), "anyOf": [seeds, seeds["additionalProperties"]],
    }  # fmt: skip
    return {"$schema": _DRAFT, **sweep, **_ASIDES, "title": "A sweep of splitfed", "$defs": defs}


SCHEMAS = {"scenario": scenario_schema, "sweep": sweep_schema}


def text(schema: Schema) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema, indent=2) + "\n"


def _generated(model: type[BaseModel]) -> Schema:
    """Return pydantic's schema of a model, with what our validators take besides."""
    schema = model.model_json_schema(schema_generator=_Generator)
    classes = {(section.__name__, kind(section)): section for section in _sections(model)}
    defs: dict[str, Schema] = schema.get("$defs", {})
    for one in [schema, *defs.values()]:
        section = classes.get((one["title"], _kind(one)), model if one is schema else None)
        _describe(one, section)
        for key in one.get("properties", {}).values():
            if isinstance(key.get("default"), dict):
                del key["default"]  # a whole section: its keys have their own
        if "kind" in one.get("properties", {}) and section is not _UNSAID:
            one["required"] = ["kind", *(name for name in one.get("required", []) if name != "kind")]
    short = {_DEFS + name: _short(one, classes.get((one["title"], _kind(one)))) for name, one in defs.items()}
    _with_short_forms(schema, short)
    return schema


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for section in sections(field.annotation):
            yield from _sections(section)


def _kind(schema: Schema) -> str | None:
    return schema.get("properties", {}).get("kind", {}).get("const")


def _describe(schema: Schema, section: type[BaseModel] | None) -> None:
    """Put docstrings in one line each; a `kind` is what its section is."""
    if section is None or not section.__doc__:
        return
    schema["description"] = one_line(section.__doc__)
    for name, one in schema.get("properties", {}).items():
        if "description" in one:
            one["description"] = one_line(one["description"])
        elif name == "kind":
            one["description"] = first_sentence(section.__doc__)


def _short(schema: Schema, section: type[BaseModel] | None) -> Schema | None:
    """Return the schema of a section's short form, its kind alone; None where its other keys have no defaults."""
    named = schema.get("properties", {}).get("kind")
    if named is None or len(schema.get("required", ())) > 1:
        return None
    try:
        if section is not None and "const" in named:
            section.model_validate({"kind": named["const"]})
    except ValidationError:
        return None
    return {"const": named["const"]} if "const" in named else {k: v for k, v in named.items() if k != "default"}


def _with_short_forms(schema: Any, short: dict[str, Schema | None]) -> None:
    """Let every section that is one of several kinds be written as the name of its kind, everywhere in a schema."""
    for one in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _with_short_forms(one, short)
    if isinstance(schema, dict) and "oneOf" in schema:
        schema.pop("discriminator", None)  # OpenAPI's, not JSON schema's
        members = schema.pop("oneOf")
        forms = [form for member in members if (form := short.get(member["$ref"])) is not None]
        words = [form["const"] for form in forms if "const" in form]
        plain = [{"enum": words}] if words else []
        schema["anyOf"] = [*plain, *(form for form in forms if "const" not in form), *members]
    elif isinstance(schema, dict) and "anyOf" in schema:  # a number or such a section: one list of them all
        ways = [one["anyOf"] if set(one) == {"anyOf"} else [one] for one in schema["anyOf"]]
        schema["anyOf"] = [way for some in ways for way in some]


def _with_presets(schema: Schema) -> None:
    """Let the sections of presets leave out what a preset says: all but their keys is free where one is named."""
    defs: dict[str, Schema] = schema["$defs"]
    properties: dict[str, Schema] = schema["properties"]

    def refined(one: Any) -> Any:
        if isinstance(one, list):
            return [refined(inner) for inner in one]
        if not isinstance(one, dict):
            return one
        if (ref := one.get("$ref")) is not None:
            target = ref.removeprefix(_DEFS) + _REFINED
            if target not in defs:
                defs[target] = {}  # it may name itself
                defs[target] = refined(defs[target.removesuffix(_REFINED)])
            return {**one, "$ref": _DEFS + target}
        return {key: refined(value) for key, value in one.items() if key not in ("required", "default")}

    of_presets = [name for name in properties if any(name in settings for settings in PRESETS.values())]
    whole = {name: properties[name] for name in of_presets}
    for name in of_presets:
        properties[name] = {"description": properties[name]["description"]}
    schema |= {
        "if": {"properties": {KEY: {"type": "string"}}, "required": [KEY]},
        "then": {"properties": {name: refined(one) for name, one in whole.items()}},
        "else": {"properties": whole},
    }


def _paths(
    schema: Schema, defs: dict[str, Schema], at: str = _DEFS + "Scenario", before: str = ""
) -> dict[str, list[str]]:
    """Return every section.key of a schema, with where in `$defs` its schemas are."""
    found: dict[str, list[str]] = {}
    for key, one in schema.get("properties", {}).items():
        path = f"{before}{key}"
        found.setdefault(path, []).append(f"{at}/properties/{key}")
        for ref in _refs(one):
            name = ref.removeprefix(_DEFS)
            for inner, places in _paths(defs[name], defs, _DEFS + name, f"{path}.").items():
                known = found.setdefault(inner, [])
                known += [place for place in places if place not in known]
    return found


def _refs(schema: Schema) -> list[str]:
    return [one["$ref"] for one in (schema, *schema.get("anyOf", [])) if "$ref" in one]


def _one_of(places: list[str]) -> Schema:
    return {"$ref": places[0]} if len(places) == 1 else {"anyOf": [{"$ref": place} for place in places]}
