"""What the engine says of every parameter: can it be pruned, and where not, why."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.errors import unknown_name


@dataclass(frozen=True)
class ParameterReport:
    """Whether a parameter can be pruned, and where not, why.

    Attributes:
        parameter: Its name.
        shape: Its shape.
        groups: Names of the groups that lie along its axes.
        reasons: Why the axes without a group have to stay, one text per axis.
    """

    parameter: str
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def prunable(self) -> bool:
        """Whether at least one group lies along an axis of the parameter."""
        return bool(self.groups)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape)) or "scalar"
        verdict = f"in {', '.join(self.groups)}" if self.groups else "stays whole"
        return "; ".join([f"{self.parameter} [{shape}] {verdict}", *self.reasons])


class Report(tuple[ParameterReport, ...]):
    """One row for every parameter; prints as a list, with a summary first."""

    def __getitem__(self, key: int | slice | str) -> ParameterReport:  # type: ignore[override]
        """Look a row up by its position or by the parameter's name."""
        if isinstance(key, str):
            rows = {row.parameter: row for row in self}
            if key not in rows:
                raise KeyError(unknown_name("parameter", key, rows))
            return rows[key]
        return super().__getitem__(key)  # type: ignore[return-value]

    def __str__(self) -> str:
        prunable = sum(row.prunable for row in self)
        return "\n".join([f"{prunable} of {len(self)} parameters can be pruned", *(f"  {row}" for row in self)])
