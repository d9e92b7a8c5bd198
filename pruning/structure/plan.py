"""A plan: which channels of which groups go. It is JSON, it composes, and it refuses a model it wasn't made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator
from torch import Tensor

from pruning.algebra.axes import Atom
from pruning.errors import PlanError
from pruning.structure.groups import Groups


class Plan(BaseModel):
    """The channels to remove from each group, in the numbering of the model that the plan was made on.

    Attributes:
        removed: Sorted channel indices by group name.
        sizes: Number of channels of each of these groups before anything is removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    removed: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    _groups: Groups | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and (self.removed, self.sizes) == (other.removed, other.sizes)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.removed.items())))

    @property
    def groups(self) -> Groups | None:
        """The groups that the plan was made for; None if it was read from JSON."""
        return self._groups

    @model_validator(mode="after")
    def _indices_fit(self) -> Plan:
        for name, indices in self.removed.items():
            size = self.sizes.get(name)
            if size is None:
                raise ValueError(f"group {name!r} has removed channels but no size")
            if list(indices) != sorted(set(indices)) or (indices and not 0 <= indices[0] <= indices[-1] < size):
                raise ValueError(
                    f"group {name!r} needs sorted, distinct channels below {size}; found {list(indices)[:8]}"
                )
            if len(indices) >= size:
                raise ValueError(f"group {name!r} would lose all of its {size} channels")
        return self

    @classmethod
    def of(cls, groups: Groups, removed: Mapping[str, Iterable[int]]) -> Plan:
        """Make a plan for a model's groups.

        Raises:
            PlanError: A group is unknown, would become empty, or tied groups lose different counts.
        """
        chosen = {name: tuple(sorted(set(indices))) for name, indices in removed.items()}
        chosen = {name: chosen[name] for name in sorted(chosen) if chosen[name]}
        try:
            plan = cls(removed=chosen, sizes={name: groups[name].size for name in chosen})
        except ValueError as fault:
            raise PlanError(f"this plan can't be carried out: {fault}") from fault
        plan.check(groups)
        plan._groups = groups
        return plan

    def check(self, groups: Groups) -> None:
        """Refuse a model that this plan wasn't made for.

        Raises:
            PlanError: A group is missing or has another size, or tied groups lose different counts.
        """
        model = type(groups.model).__name__
        for name, size in self.sizes.items():
            if groups[name].size != size:
                raise PlanError(
                    f"group {name!r} of {model} has {groups[name].size} channels, the plan was made for {size}; "
                    "use the factory and the arguments that the plan was made with"
                )
        for name in self.removed:
            for other in groups[name].ties:
                lost, also = len(self.removed[name]), len(self.removed.get(other, ()))
                if lost != also:
                    raise PlanError(
                        f"groups {name!r} and {other!r} of {model} have to lose equal counts, because code splits them "
                        f"in equal parts; the plan removes {lost} and {also}"
                    )

    def kept(self, name: str) -> Tensor:
        """Bool [size of the group]: True where a channel stays."""
        mask = torch.ones(self.sizes[name], dtype=torch.bool)
        mask[list(self.removed.get(name, ()))] = False
        return mask

    def kept_sizes(self, groups: Groups) -> dict[str, int]:
        """Number of channels that each group of the plan keeps."""
        self.check(groups)
        return {name: size - len(self.removed.get(name, ())) for name, size in self.sizes.items()}

    def masks(self, groups: Groups) -> dict[Atom, Tensor]:
        """The same as masks over the atoms of the algebra."""
        self.check(groups)
        return {groups.atom(name): self.kept(name) for name in self.removed}

    def then(self, other: Plan) -> Plan:
        """Compose with a plan that was made on the model narrowed by this one.

        Returns:
            One plan in this plan's numbering that does both.

        Raises:
            PlanError: The other plan's sizes aren't those that this plan leaves.
        """
        removed, sizes = dict(self.removed), dict(self.sizes)
        for name, indices in other.removed.items():
            if name not in sizes:
                removed[name], sizes[name] = indices, other.sizes[name]
                continue
            left = self.kept(name).nonzero().flatten().tolist()
            if len(left) != other.sizes[name]:
                raise PlanError(
                    f"the second plan was made for {other.sizes[name]} channels of group {name!r}, "
                    f"the first leaves {len(left)}"
                )
            removed[name] = tuple(sorted((*removed.get(name, ()), *(left[i] for i in indices))))
        plan = Plan(removed={n: removed[n] for n in sorted(removed)}, sizes={n: sizes[n] for n in sorted(sizes)})
        plan._groups = self._groups
        return plan
