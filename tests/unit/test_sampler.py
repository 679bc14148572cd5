"""What proposes: known configurations teach as drawn ones do, a trial is one observation, and it beats chance."""

import math
import random
import statistics
from pathlib import Path

import optuna
import pytest

from fer_scale.families import FAMILIES, weights
from fer_scale.learning.configuration import Configuration
from fer_scale.search import sampler as sampler_module
from fer_scale.search.fixed import check_fixed
from fer_scale.search.journal import Journal
from fer_scale.search.sampler import Sampler
from fer_scale.search.space import asked, suggest
from fer_scale.search.study import Study

ALL = list(FAMILIES)
SEEDS = range(3)
FITS, NOISE = 40, 0.012
LEVEL = {"resnet": 0.70, "efficientnet": 0.62, "cnn2": 0.66, "complex_cnn": 0.67, "cnn1": 0.63, "vgg16": 0.64}


def surface(one: Configuration) -> float:
    """A made-up accuracy: families differ, one of them pays with pretrained weights alone, and much has an optimum."""
    network, recipe = one.network, one.recipe
    found: float = LEVEL[one.family] + {48: 0.0, 64: 0.01, 96: 0.025}[one.preprocessing.size]
    if weights.pretrained(getattr(network, "variant", ""), getattr(network, "weights", "none")):
        found += {0: -0.1, None: 0.12}.get(network.unfreeze, 0.06)
    best = {"adamw": 2e-3, "sgd": 0.06}[recipe.optimizer]
    found -= 0.06 * math.log10(recipe.lr / best) ** 2 + 0.02 * (recipe.augmentation - 1) ** 2
    found += 0.01 * (recipe.optimizer == "sgd") + 0.01 * (recipe.batch_size == 64) - 0.01 * (recipe.warmup < 0.1)
    found -= 0.1 * abs(recipe.label_smoothing - 0.05) + 0.01 * (recipe.cutmix > 0) + 0.1 * (1 - recipe.layer_decay)
    dropout = getattr(network, "dropout", None)
    found -= 0.08 * ((network.dense_dropout if dropout is None else dropout) - 0.35) ** 2
    return found


def searched(folder: Path, seed: int) -> list[float]:
    """The true accuracy of what a search of so many fits proposes, where it sees each with noise."""
    study = Study(Journal(str(folder)), ALL, {}, seed, f"{seed}")
    noise, proposed = random.Random(seed), []
    for _ in range(FITS):
        number, fit = study.new()
        true = surface(Configuration.from_dict(fit.configuration))
        study.end(number, fit, {"accuracy": true + noise.gauss(0, NOISE), "top": False})
        if fit.start == "proposed":
            proposed.append(true)
    return proposed


def test_after_forty_fits_the_best_found_beats_chance(tmp_path: Path) -> None:
    ours = [searched(tmp_path, seed) for seed in SEEDS]
    chance = []
    for seed in SEEDS:
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        chance.append([surface(suggest(drawn.ask(), ALL, {})) for _ in ours[seed]])
    assert statistics.mean(map(max, ours)) > statistics.mean(map(max, chance)) + 0.025
    typical, by_chance = (statistics.mean(map(statistics.mean, runs)) for runs in (ours, chance))
    assert typical > by_chance + 0.05


def test_what_is_replayed_is_what_was_drawn() -> None:
    for fixed in ({}, {"lr": "0.01..0.1", "batch_size": "32,64", "clip": "1..2", "resnet.stem": "1,2"}):
        given = check_fixed(fixed, ALL)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(60):
            trial = study.ask()
            configuration = suggest(trial, ALL, given)
            assert asked(configuration, ALL, given) == (trial.params, trial.distributions)


def test_a_known_configuration_has_parameters_the_nearest_that_the_space_has() -> None:
    known = Configuration.from_dict(
        {
            "family": "cnn1",
            "network": {"width": 1.8, "dense": "7"},
            "recipe": {"lr": 1e-5, "augmentation": 1.0, "batch_size": 100},
        }
    )
    parameters, distributions = asked(known, ALL, check_fixed({"size": 48}, ALL))
    assert (parameters["cnn1.width"], parameters["adamw.lr"], parameters["batch_size"]) == (2.0, 2e-4, 128)
    assert (parameters["family"], parameters["augmentation"]) == ("cnn1", 1.0)
    assert not {"cnn1.dense", "cnn1.size", "sgd.lr", "resnet.variant"} & parameters.keys()
    assert parameters.keys() == distributions.keys()


def test_a_trial_is_one_observation_at_its_highest_rung(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    study = Study(journal, ["cnn1"], {}, 0, "one")
    (number, fit), (other, second) = study.new(), study.new()
    study.end(number, fit, {"accuracy": 0.5, "top": False})
    study.end(other, second, {"accuracy": 0.6, "top": False})
    for rung, confirm, accuracy in ((2, False, 0.7), (3, False, 0.8), (3, True, 0.9)):
        number, higher = study.again(fit, rung, confirm=confirm)
        study.end(number, higher, {"accuracy": accuracy, "top": rung == 3})
    seen = study._sampler._study.get_trials()
    assert [(one.state.name, one.intermediate_values) for one in seen] == [
        ("COMPLETE", {3: pytest.approx(0.85)}),
        ("PRUNED", {1: 0.6}),
    ]
    assert "cnn1.width" in seen[0].params
    journal.keep()
    again = Study(Journal(str(tmp_path)), ["cnn1"], {}, 0, "one")
    for one, then in zip(again._sampler._study.get_trials(), seen, strict=True):
        assert (one.params, one.intermediate_values) == (then.params, then.intermediate_values)


def test_a_search_that_goes_on_does_not_propose_what_it_has(tmp_path: Path) -> None:
    found = []
    for count in (5, 3):
        journal = Journal(str(tmp_path))
        study = Study(journal, ["cnn1"], {}, 0, "killed")
        for _ in range(count):
            number, fit = study.new()
            study.end(number, fit, {"reason": "so that all are drawn at random"})
            found.append(Configuration.from_dict(fit.configuration))
        journal.keep()
    assert len(set(found)) == 8


def test_a_search_of_the_largest_seed_goes_on(tmp_path: Path) -> None:
    for trial in range(2):
        journal = Journal(str(tmp_path))
        study = Study(journal, ["cnn1"], {}, 2**32 - 1, "last")
        number, fit = study.new()
        assert fit.trial == trial
        study.end(number, fit, {"accuracy": 0.5, "top": False})
        journal.keep()


def test_the_sampler_forgets_all_but_the_best_and_the_latest_and_still_knows_what_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler_module, "REMEMBERED", 10)
    monkeypatch.setattr(sampler_module, "MOST_RUNNING", 6)
    sampler, drawn = Sampler(0, startup=2), {}
    for trial in range(68):
        drawn[trial] = sampler.propose(trial, lambda one: suggest(one, ["cnn1"], {}))
        if (ended := trial - 8) >= 0:
            accuracy = 0.9 if ended == 7 else ended / 100
            sampler.observe(ended, asked(drawn[ended], ["cnn1"], {}), 1, accuracy, top=False)
            sampler.ended(ended)
    known = sampler._study.get_trials()
    assert sum(one.state == optuna.trial.TrialState.RUNNING for one in known) == 6, "of eight the latest"
    ended_values = [one.value for one in known if one.state == optuna.trial.TrialState.PRUNED]
    assert 10 <= len(ended_values) < 20
    assert {0.9, 0.59} <= set(ended_values)
    for trial in range(60, 68):
        sampler.ended(trial)
    assert not any(one.state == optuna.trial.TrialState.RUNNING for one in sampler._study.get_trials())


def test_what_cannot_be_told_apart_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_within_reach", weights.PACKAGES.__contains__)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [(trial, suggest(trial, ALL, {})) for trial in (study.ask() for _ in range(400))]
    for trial, one in drawn:
        assert not {"vgg16.weights", "resnet.weights", "vgg16.unfreeze", "resnet.unfreeze"} & trial.params.keys()
        known = one.family == "efficientnet" and one.network.weights == "auto"
        assert one.recipe.layer_decay == 1 or (known and one.recipe.layer_decay >= 0.85)
        assert ("efficientnet.unfreeze" in trial.params) == known
    whole = [one for _, one in drawn if one.family == "efficientnet" and one.network.weights == "auto"]
    assert len([one for one in whole if one.network.unfreeze is None]) >= 0.01 * len(drawn)
    assert {one.network.unfreeze for one in whole} == {0, 4, 6, None}
