"""What a run trains, settled before any structure is read: config, starting models, members."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sitenet.config import DEFAULT_CONFIG, SiteNetConfig, load_config
from sitenet.data.dataset import Dataset, Preparation
from sitenet.data.prepare import preparation_of
from sitenet.model.checkpoint import load
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.progress import Reporter
from sitenet.training.recipe import described, fine_tuning, open_settings
from sitenet.training.state import STATE, earlier_settings
from sitenet.training.targets import same_properties, sets_last_activation

Start = str | Path | Model | Sequence[str | Path | Model] | None


@dataclass(frozen=True)
class Member:
    """One model to train.

    Attributes:
        number: From 1.
        config: With a seed of its own.
        folder: Its run folder, or None.
        start: The model to fine-tune, or None.
    """

    number: int
    config: SiteNetConfig
    folder: Path | None
    start: SiteNet | None


@dataclass(frozen=True)
class Plan:
    """What a run trains.

    Attributes:
        config: Of the whole run.
        starts: Models to fine-tune: none, one for all members, or one per member.
        freeze: Train only the layers after pooling.
        only: Number of the one member to train, or None for all.
        activation_is_set: Whether the user chose ``last_activation``.
    """

    config: SiteNetConfig
    starts: tuple[SiteNet, ...] = ()
    freeze: bool = False
    only: int | None = None
    activation_is_set: bool = False

    @property
    def preparation(self) -> Preparation:
        """How structures are read."""
        return Preparation(self.config.primitive, self.config.disorder)

    def members(self, folder: Path | None) -> Iterator[Member]:
        """The models to train, each with a folder of its own in that of an ensemble."""
        count = self.config.training.members
        for k in range(count) if self.only is None else [self.only - 1]:
            own = folder
            if folder is not None and count > 1:
                own = folder / f"member-{k + 1}"
                own.mkdir(exist_ok=True)
            start = None
            if self.starts:
                start = self.starts[k if len(self.starts) > 1 else 0]
            seed = self.config.training.seed + k
            yield Member(k + 1, self.config.replace(members=1, seed=seed), own, start)

    def for_dataset(self, dataset: Dataset, reporter: Reporter) -> Plan:
        """The plan with the settings of a dataset that was prepared earlier, which the model
        keeps."""
        used = self.preparation if dataset.path is None else preparation_of(dataset.path)
        if used == self.preparation:
            return self
        reporter.say(
            f"the dataset was prepared with primitive: {str(used.primitive).lower()} and disorder: "
            f"{used.disorder}; the model keeps these settings"
        )
        settings = {"primitive": used.primitive, "disorder": used.disorder}
        return replace(self, config=self.config.replace(**settings))

    def for_size(self, crystals: int, folder: Path | None, reporter: Reporter) -> Plan:
        """The plan with the batch size and the epochs that its config leaves open: those of the
        run in the folder, else those that suit the number of training crystals."""
        chosen = open_settings(self.config.training, crystals, bool(self.starts))
        if not chosen:
            return self
        earlier = {} if folder is None else earlier_settings(folder)
        as_begun = {name: earlier[name] for name in chosen if name in earlier}
        chosen |= as_begun
        reporter.say(described(crystals, chosen, as_begun=bool(as_begun)))
        return replace(self, config=self.config.replace(**chosen))

    def for_signs(
        self, negative: Sequence[str], targets: Sequence[Target], reporter: Reporter
    ) -> Plan:
        """The plan with a last activation that suits the signs of the targets, unless the user
        chose one: identity for negative values, and for a property without them that of the
        default config in place of the identity that a start needed for its own property.

        Args:
            negative: Names of the targets with negative values.
            targets: All of them.
            reporter: Says what is changed, and why.
        """
        if negative:
            return self._for_negative(negative, reporter)
        usual = SiteNetConfig().last_activation
        if (
            not self.starts
            or self.activation_is_set
            or self.config.last_activation != "identity"
            or same_properties(self.starts[0].targets, targets)
            or not all(t.kind == "value" and t.scale == "linear" for t in targets)
        ):
            return self
        names = ", ".join(t.name for t in targets)
        reporter.say(f"no value of {names} is negative: last_activation is {usual}")
        return replace(self, config=self.config.replace(last_activation=usual))

    def _for_negative(self, names: Sequence[str], reporter: Reporter) -> Plan:
        activation = self.config.last_activation
        if activation == "identity":
            return self
        subject = f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} negative values"
        if self.activation_is_set:
            warnings.warn(
                f"{subject}, which last_activation: {activation} cannot predict; "
                "last_activation: identity can",
                stacklevel=3,
            )
            return self
        reporter.say(f"{subject}: last_activation is identity, instead of {activation}")
        return replace(self, config=self.config.replace(last_activation="identity"))


def make_plan(
    config: str | Path | Mapping[str, Any] | SiteNetConfig | None,
    start: Start,
    changes: Mapping[str, Any],
    freeze: bool = False,
    only: int | None = None,
) -> Plan:
    """Settle what to train.

    Args:
        config: As in ``train``.
        start: As in ``train``.
        changes: Fields of the config to change.
        freeze: As in ``train``.
        only: As ``member`` in ``train``.

    Raises:
        ValueError: The settings contradict each other.
    """
    starts = _load_starts(start)
    named = DEFAULT_CONFIG if config is None else config
    base = load_config(named)
    activation_is_set = sets_last_activation({} if starts else named, changes)
    if starts:
        trained = starts[0].config
        training = fine_tuning(trained.training) if config is None else base.training
        base = trained.replace(training=training)
        if len(starts) > 1:
            base = base.replace(members=len(starts))
    elif freeze:
        raise ValueError("freeze needs a model to start from")
    settled = base.replace(**changes)
    count = settled.training.members
    if len(starts) > 1 and count != len(starts):
        raise ValueError(f"the model to start from has {len(starts)} members, not {count}")
    for number, model in enumerate(starts[1:], 2):
        if model.config.replace(training=settled.training).replace(**changes) != settled:
            raise ValueError(f"model {number} to start from has another config than the 1st")
    if only is not None and (count < 2 or not 1 <= only <= count):
        raise ValueError(f"no member {only}: the ensemble has {count} (members: {count})")
    return Plan(settled, tuple(starts), freeze, only, activation_is_set)


def _load_starts(start: Start) -> list[SiteNet]:
    """The single models to start from; an ensemble counts as its members."""
    if start is None:
        return []
    several = [start] if isinstance(start, (str, Path, SiteNet, Ensemble)) else start
    models = [load(x) if isinstance(x, (str, Path)) else x for x in several]
    return [m for model in models for m in getattr(model, "members", [model])]


def refuse_other_layout(folder: Path, config: SiteNetConfig) -> None:
    """Refuse to mix an ensemble and a single-model run in one folder."""
    several = config.training.members > 1
    if (folder / STATE if several else folder / "member-1").exists():
        single, ensemble = "a single model", "an ensemble"
        theirs, ours = (single, ensemble) if several else (ensemble, single)
        raise ValueError(
            f"{folder} holds a run of {theirs}, this is one of {ours}: choose another folder, or "
            "remove it to start over"
        )
