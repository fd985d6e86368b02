"""Names and numbers of losses on the command line."""

import pytest
import tyro

from contrastive_jax.search.texts import parse_axes, parse_numbers
from contrastive_jax.train import loss_names, loss_table
from experiments import compare_losses, margin_ablation, search, trials


def test_hints_are_losses_of_the_table():
    for peer, ours in loss_names.PEERS.items():
        assert {*ours} <= {*loss_table.NAMES}, peer
        assert len({*ours}) == len(ours) > 0
    # Whatever the table has that pytorch-metric-learning has too is named.
    named = {name for ours in loss_names.PEERS.values() for name in ours}
    alone = {
        "cosine_embedding",
        "sentence_contrastive",
        "sigmoid",
        "logistic",
        "supcon_inside",
        "decoupled",
        "online_hard",
    }
    miners = {name for name in loss_table.NAMES if name.startswith("mined_")}
    assert {*loss_table.NAMES} - named - miners == alone


def test_peers_are_losses_of_pytorch_metric_learning():
    peers = pytest.importorskip("pytorch_metric_learning.losses", reason="needs the extra bench")
    for name in loss_names.PEERS:
        assert hasattr(peers, name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("TripletMarginLoss", "is triplet_all, triplet_hard, triplet_semi_hard here"),
        ("losses.TripletMarginLoss", "is triplet_all, triplet_hard, triplet_semi_hard here"),
        ("tripletmargin", "TripletMarginLoss of pytorch-metric-learning is triplet_all"),
        ("triplet_margin_loss", "TripletMarginLoss of pytorch-metric-learning is triplet_all"),
        ("NTXentLoss", "NTXentLoss of pytorch-metric-learning is ntxent here"),
        ("MultiSimilarityLoss", "is multi_similarity here"),
        ("supcom", "close to it: supcon"),
    ],
)
def test_an_unknown_loss_is_answered_with_those_it_may_mean(name, hint):
    with pytest.raises(ValueError, match=f"unknown loss {name}; .*{hint}") as error:
        loss_table.check_name(name)
    assert len(str(error.value)) < 150  # not all of them


def test_every_name_of_a_peer_has_a_hint_unless_it_is_one_of_ours():
    for name in loss_names.PEERS:
        with pytest.raises(ValueError, match=f"{name} of pytorch-metric-learning is "):
            loss_table.check_name(name)
    for name in loss_table.NAMES:
        loss_table.check_name(name)
    with pytest.raises(ValueError, match="unknown loss zzz; the losses are"):
        loss_table.check_name("zzz")


def test_commands_give_hints():
    message = "TupletMarginLoss of pytorch-metric-learning is tuplet_margin here"
    with pytest.raises(ValueError, match=message):
        compare_losses.main(compare_losses.Config(losses=("TupletMarginLoss",)))
    with pytest.raises(ValueError, match=message):
        parse_axes(["loss=supcon,TupletMarginLoss"], trials.STRUCTURE)
    with pytest.raises(ValueError, match=message):
        trials.check_axes(search.Config(), ["margin"], ["TupletMarginLoss"], "--space")


@pytest.mark.parametrize("experiment", [search, margin_ablation], ids=lambda one: one.__name__)
def test_numbers_of_a_loss_are_given_by_name(experiment):
    arguments = ["--loss", "circle", "--loss_options", "margin=0.3", "scale=2e1", "--width", "8"]
    config = tyro.cli(experiment.Config, args=arguments, use_underscores=True)
    assert config.loss_options == {"margin": 0.3, "scale": 20.0}
    assert config.width == 8
    assert tyro.cli(experiment.Config, args=[], use_underscores=True).loss_options == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["margin"], "takes NAME=VALUE, as margin=0.3 scale=20, got 'margin'"),
        (["margin", "0.3"], "got 'margin'"),
        (["=0.3"], "got '=0.3'"),
        (["margin="], "got 'margin='"),
        (["margin=wide"], "got 'margin=wide'"),
        (["margin=0.3", "margin=0.3"], "names margin twice"),
    ],
)
def test_numbers_of_another_form_are_named(texts, message, capsys):
    with pytest.raises(ValueError, match=message):
        parse_numbers(texts)
    with pytest.raises(SystemExit):
        tyro.cli(search.Config, args=["--loss_options", *texts], use_underscores=True)
    assert "--loss_options" in capsys.readouterr().err
