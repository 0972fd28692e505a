"""Parameters: a query read against the parameter schema of an operation."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from falcon.uri import parse_query_string

from server.errors import BadParameter
from server.operations.registry import Expected, Parameters

#: Callers' words are quoted back up to this many characters.
_LONGEST_QUOTE = 40


class Query:
    """What may stand in the query of an operation's route.

    Args:
        parameters: the schema; each field has a finite set of values.
        for_jobs: parameters that only a job takes.
    """

    def __init__(self, parameters: type[Parameters], for_jobs: Collection[str] = ()) -> None:
        self._for_jobs = for_jobs
        properties = schemas(parameters)
        self._choices = {name: _choices(schema) for name, schema in properties.items()}
        self._expected = {
            name: next((note.text for note in field.metadata if isinstance(note, Expected)), None)
            or _expected(properties[name])
            for name, field in parameters.model_fields.items()
        }
        self._required = frozenset(
            name for name, field in parameters.model_fields.items() if field.is_required()
        )
        self._defaults = parameters.model_construct().model_dump(exclude=set(self._required))

    def read(self, query: str) -> dict[str, Any]:
        """Return the value of every parameter.

        Raises:
            BadParameter: one is unknown, missing, repeated, or has a value that it cannot have.
        """
        return self.choose(parse_query_string(query, keep_blank=True, csv=False))

    def choose(self, given: Mapping[str, str | list[str]]) -> dict[str, Any]:
        """Return the value of every parameter, for a query that has been taken apart.

        Raises:
            BadParameter: as for `read`.
        """
        given = dict(given)
        values = self._defaults | {
            name: self._value(name, given.pop(name, None))
            for name in self._choices
            if name in given or name in self._required
        }
        if misplaced := [name for name in self._for_jobs if name in given]:
            raise BadParameter(
                f"Only a job takes {_names(misplaced)}. Send `Prefer: respond-async` too, or leave it out."
            )
        _refuse_unknown(given)
        return values

    def _value(self, name: str, value: str | list[str] | None) -> object:
        expected = self._expected[name]
        if value is None:
            raise BadParameter(f"The parameter `{name}` is missing. Give {expected}.")
        value = _single(name, value)
        if value not in self._choices[name]:
            raise BadParameter(f"The parameter `{name}` is {_quoted(value)}. Give {expected}.")
        return self._choices[name][value]


def read_start(query: str) -> int:
    """Return the value of `start` in the query of a list, which has no other parameter.

    Raises:
        BadParameter: one is unknown or repeated, or `start` is no number.
    """
    given = parse_query_string(query, keep_blank=True, csv=False)
    start = _single("start", given.pop("start", "0"))
    _refuse_unknown(given)
    if (number := whole(start)) is None:
        raise BadParameter("The parameter `start` is wrong. Give a whole number, 0 or more.")
    return number


def whole(text: str) -> int | None:
    """Read a whole number, 0 or more, of at most nine digits; None when it is none."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _refuse_unknown(left: Mapping[str, object]) -> None:
    if left:
        raise BadParameter(
            f"There is no parameter {_names(left)} here. Leave it out; /openapi.json lists what there is."
        )


def _single(name: str, value: str | list[str]) -> str:
    if isinstance(value, list):
        raise BadParameter(f"The parameter `{name}` is there more than once. Give it once.")
    return value


def schemas(parameters: type[Parameters]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each parameter, as its values are when it is given; required ones first."""
    properties = parameters.model_json_schema()["properties"]
    names = sorted(properties, key=lambda name: not parameters.model_fields[name].is_required())
    return {name: _given(properties[name]) for name in names}


def _given(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a caller cannot give in a query: null, which stands for a parameter that is left out."""
    either = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    words = {name: value for name, value in schema.items() if name not in {"anyOf", "title"}}
    if words.get("default", ...) is None:
        del words["default"]
    return {**(either[0] if either else {}), **words}


def _choices(schema: Mapping[str, Any]) -> dict[str, object]:
    """Return the values of a parameter by how they are written."""
    if "enum" in schema:
        return {
            str(value).lower() if isinstance(value, bool) else str(value): value for value in schema["enum"]
        }
    if schema["type"] == "boolean":
        return {"true": True, "false": False}
    return {str(number): number for number in range(schema["minimum"], schema["maximum"] + 1)}


def _expected(schema: Mapping[str, Any]) -> str:
    """Say what a parameter can be."""
    if "enum" in schema or schema["type"] == "boolean":
        *others, last = _choices(schema)
        return f"{others[0]} or {last}" if len(others) == 1 else f"one of {', '.join([*others, last])}"
    return f"a whole number from {schema['minimum']} to {schema['maximum']}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(_quoted(name) for name in names)


def _quoted(text: str) -> str:
    return f"`{text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + '...'}`"
