"""A choice out of a table: `{name, options}`, where options are checked against the chosen class's own model."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator


class Choice(BaseModel):
    """Base of the choices that `choice` makes. A bare string stands for `{name: ...}`, `NAME:ARG` fills its `argument`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def table(cls) -> Mapping[str, type]:
        return cls._table  # type: ignore[attr-defined]

    @property
    def chosen(self) -> type:
        return self.table()[self.name.value]  # type: ignore[attr-defined]

    def parsed(self) -> BaseModel:
        """The chosen class's own options."""
        return self.chosen.Options(**self.options)  # type: ignore[attr-defined]

    def make(self, *args: Any, **kwargs: Any) -> Any:
        """An instance of the chosen class, with its options first."""
        return self.chosen(self.parsed(), *args, **kwargs)

    @model_validator(mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or "name" not in value:
            return value
        value = dict(value)
        name = value["name"].value if isinstance(value["name"], enum.Enum) else str(value["name"])
        given = value.get("options")
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"options: expected a mapping of names to values, found {given!r}")
        options = dict(given or {})
        table = cls.table()
        if name not in table and ":" in name and name.split(":")[0] in table:
            name, argument = name.split(":", 1)
            field = getattr(table[name], "argument", None)
            if field:
                options[field] = argument
        if name not in table:
            raise ValueError(unknown(cls._kind, name, table))  # type: ignore[attr-defined]
        # Kept as given and not as dumped: "left to its default" and "set" must stay distinguishable.
        try:
            model = table[name].Options.model_validate(options)
        except ValidationError as error:
            raise ValueError("; ".join(problems(error, table[name].Options, prefix="options."))) from None
        dumped = model.model_dump(mode="json", exclude_unset=True)
        return {**value, "name": name, "options": dumped}


def choice(kind: str, table: Mapping[str, type]) -> type[Choice]:
    """The pydantic model of one choice out of `table`; its name is an enum, so that forms show a menu."""
    title = "".join(part.capitalize() for part in kind.split())
    names = enum.StrEnum(f"{title}Name", {name: name for name in table})
    model = create_model(
        title,
        __base__=Choice,
        name=(names, Field(description=f"Which {kind}: {', '.join(table)}.")),
        options=(dict[str, Any], Field(default_factory=dict, description=f"The {kind}'s own options.")),
    )
    model._table = table
    model._kind = kind
    return model


def problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each problem, naming its key, what was found and, for an unknown key, those that are valid."""
    lines = []
    for one in error.errors(include_url=False):
        where = prefix + ".".join(str(part) for part in one["loc"])
        message = one["msg"].removeprefix("Value error, ")
        found = one.get("input")
        if one["type"] == "extra_forbidden":
            message = unknown("key", str(one["loc"][-1]), _keys(model, one["loc"][:-1]))
        elif one["type"] == "missing":
            message = "is required"
        elif one["type"] != "value_error" or not isinstance(found, Mapping | BaseModel):
            message = f"{message}, found {found!r}"
        lines.append(f"{where}: {message}" if where else message)
    return lines


def _keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        model = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def unknown(kind: str, name: str, valid: Any) -> str:
    """The message for a name that is not in `valid`, with the nearest and all that are."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}."


