"""Reflect-DiT's search: what each picture is drawn with, when it ends, and what the answer is."""

import pytest
from fakes import REQUEST, FakeGenerator, FakeVerifier

from reflect_core.search import start
from reflect_core.search.reflect_dit import ReflectDiTSearch
from reflect_core.types import UserError


class Says:
    """Hands out the texts one after another, and the last one for ever."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def reflect(self, prompt, pictures, verdicts):
        return [self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]]


def drawn(policy, *texts, threshold=2.0, seed=None):
    request = REQUEST if seed is None else type(REQUEST)(**{**REQUEST.__dict__, "seed": seed})
    return start(request, policy, FakeGenerator(max_context=3), FakeVerifier(threshold), Says(*texts), chunk=1).run()


def contexts(run):
    return [[(pair.candidate, pair.feedback) for pair in c.request.context] for c in run.candidates]


def test_up_to_k_all_pairs_oldest_first():
    run = drawn(ReflectDiTSearch(4), "a", "b", "c")
    assert contexts(run) == [[], [(0, "a")], [(0, "a"), (1, "b")], [(0, "a"), (1, "b"), (2, "c")]]
    assert [c.parent for c in run.candidates] == [None, 0, 1, 2] and [c.round for c in run.candidates] == [0, 1, 2, 3]
    assert len({c.request.seed for c in run.candidates}) == 4


def test_beyond_k_some_that_say_different_things_by_the_seed():
    texts = ["a", "b", "a", "c", "d", "b", "e"]
    runs = [drawn(ReflectDiTSearch(8), *texts, seed=seed) for seed in (1, 1, 2)]
    assert contexts(runs[0]) == contexts(runs[1]) != contexts(runs[2])
    first = {text: texts.index(text) for text in texts}
    for pairs in contexts(runs[0])[4:]:
        assert len(pairs) == 3 == len({text for _, text in pairs})
        assert all(candidate == first[text] for candidate, text in pairs), "the earliest picture of each text"


def test_one_text_for_all_leaves_one_pair():
    assert contexts(drawn(ReflectDiTSearch(6), "a"))[3:] == [[(0, "a"), (1, "a"), (2, "a")], [(0, "a")], [(0, "a")]]


def test_k_of_one_and_nothing_to_say():
    assert contexts(drawn(ReflectDiTSearch(3, context=1), "a", "b"))[2][0][1] in "ab"
    assert contexts(drawn(ReflectDiTSearch(3), "", "b")) == [[], [], [(1, "b")]]
    assert contexts(drawn(ReflectDiTSearch(3, keep_silent=True), "", "b")) == [[], [(0, "")], [(0, ""), (1, "b")]]


def test_it_ends_with_the_first_accepted_picture_and_else_with_the_best_or_last():
    best, last = (drawn(ReflectDiTSearch(5, answer=answer), "a") for answer in ("best", "last"))
    assert ReflectDiTSearch(5).choose(best) == best.best() and best.stopped.kind == "done"
    assert ReflectDiTSearch(5, answer="last").choose(last).id == 4
    easy = drawn(ReflectDiTSearch(5), "a", threshold=0.0)
    assert len(easy.candidates) == 1 and easy.stopped.kind == "accepted"


def test_official_and_what_it_needs():
    assert ReflectDiTSearch.official() == ReflectDiTSearch(20, 3, "last", True)
    assert ReflectDiTSearch(20).max_context == 3 and ReflectDiTSearch(2).max_context == 1
    assert ReflectDiTSearch(1).needs == frozenset() and ReflectDiTSearch(2).needs == {"reflector"}


@pytest.mark.parametrize("settings, said", [({"tries": 0}, "tries"), ({"context": 0}, "context"),
                                            ({"answer": "first"}, "answer"), ({"keep_silent": 2}, "keep_silent")])
def test_settings_out_of_range(settings, said):
    with pytest.raises(UserError, match=said):
        ReflectDiTSearch(**settings)
