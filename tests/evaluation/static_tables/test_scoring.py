import pytest
import torch

from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.scoring import StaticTableScorer, evenly_spaced_subset

TABLES = [(0, 1, 2, 0), (2, 2, 2, 2), (0, 1, 0, 0), (2, 2, 2, 2)]


def test_a_scorer_agrees_with_one_table_at_a_time_and_runs_none_twice(backbone, val):
    scorer = StaticTableScorer(backbone, val)
    scores = scorer.score(TABLES)
    for table, score in zip(TABLES, scores, strict=True):
        records = evaluate_static_table(backbone, val, table, name="t")
        assert score.correct == int(records.correct.sum())
        assert score.log_likelihood == pytest.approx(float(records.log_likelihood.mean()))
        assert scorer.accuracy(table) == 100 * score.correct / len(val)
    run = backbone.layers[0].images_run
    assert scorer.score(TABLES) == scores
    assert backbone.layers[0].images_run == run
    assert list(scorer.scores) == [TABLES[0], TABLES[1], TABLES[2]]


def test_known_scores_are_taken_but_count_only_when_asked_for(backbone, val):
    first = StaticTableScorer(backbone, val)
    expected = first.score(TABLES)
    run = backbone.layers[0].images_run
    second = StaticTableScorer(backbone, val, cached_scores=first.cached_scores())
    assert second.scores == {}
    assert second.score(TABLES[:1]) == expected[:1]
    assert list(second.scores) == TABLES[:1]
    assert backbone.layers[0].images_run == run
    assert second.cached_scores() == first.cached_scores()


def test_a_part_of_a_sorted_split_has_every_class():
    labels = torch.arange(10).repeat_interleave(7)
    images = ImageSet(torch.zeros(70, 1, 4, 4, dtype=torch.uint8), labels)
    assert evenly_spaced_subset(images, 20).labels.bincount().tolist() == [2] * 10
    assert evenly_spaced_subset(images, 70) is images
    assert evenly_spaced_subset(images, 500) is images
