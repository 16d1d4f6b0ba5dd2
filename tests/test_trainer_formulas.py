"""The formulas of training, with numbers that can be worked out by hand: targets, dropouts, schedule, averages."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.loop import _Run, learning_rate, step_generator
from trainer.optimizers import Averages, Optimizers
from trainer.settings import BaseModel, CorrectorModel
from trainer.tasks.base import BaseTask
from trainer.tasks.corrector import EVAL_TIMES, CorrectorTask
from trainer.tasks.vae import VaeTask

MANY = 20000
NEAR = 0.015
"""More than three deviations of a share of so many."""


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"name": "n", "task": "vae", "out": "o", "precision": "fp32", "warmup": 0, "cooldown": 0.0,
                          **changes})


def full(value, *shape):
    return torch.full(shape or (2, 3, 4), float(value))


# The corrector.

def corrector(**changes):
    """A corrector's numbers without its model: one triplet, whose texts and pictures are told apart by a number."""
    model = CorrectorModel(base="none", **changes)
    task = SimpleNamespace(config=config(batch=MANY), m=model, rows=torch.tensor([0]), forward=None, caught={},
                           transformer=SimpleNamespace(dtype=torch.float32), empty=torch.tensor([[0]]),
                           black=full(-5, 1, 1, 1), bank={
                               "good": full(7, 1, 1, 1).half(), "flawed": full(1, 1, 1, 1).half(),
                               "told": torch.tensor([[1]]), "untold": torch.tensor([[2]]), "clip": torch.tensor([[9]])})
    task._texts = lambda clip, t5: (clip[:, 0], t5[:, 0])

    def error(forward, x0, noise, t, texts, condition):
        task.caught = {"x0": x0, "noise": noise, "t": t, "clip": texts[0], "t5": texts[1],
                       "condition": condition[:, 0, 0]}
    task._error = error
    return task


def test_the_velocity_goes_from_the_picture_to_the_noise():
    """x = (1 - t) picture + t noise; the target is noise - picture: here 3 - 1 = 2."""
    task = corrector(guidance=1.5)
    t, seen = torch.tensor([0.25, 0.5]), []

    def error(out):
        def forward(*args):
            seen.append(args)
            return out
        return float(CorrectorTask._error(task, forward, full(1), full(3), t, ("t5", "clip"), full(8)))

    assert error(full(2)) == 0 and error(full(0)) == 4 and error(full(-2)) == 16
    assert error(torch.tensor([1.0, 2.0, 2.0, 2.0]).expand(2, 3, 4)) == 0.25  # a mean, not a sum
    x, states, pooled, times, guidance, condition = seen[0]
    assert x[:, 0, 0].tolist() == [1.5, 2.0] and torch.equal(times, t)
    assert (states, pooled) == ("t5", "clip") and guidance.tolist() == [1.5, 1.5] and torch.equal(condition, full(8))


def test_what_is_dropped_how_often_and_what_takes_its_place():
    task = corrector(drop_reflection=0.2, drop_image=0.3, drop_text=0.4)
    CorrectorTask.loss(task, 0, step_generator(0, 0))
    t5, black = task.caught["t5"], task.caught["condition"] == -5
    assert set(t5.tolist()) == {0, 1, 2} and set(task.caught["condition"].tolist()) == {-5, 1}

    def share(of, among=...):
        return float(of[among].float().mean())
    assert share(black) == pytest.approx(0.3, abs=NEAR)
    assert share(t5 == 0) == pytest.approx(0.4, abs=NEAR)
    assert share(t5 == 1) == pytest.approx(0.6 * 0.8 * 0.7, abs=NEAR)  # neither text, reflection nor picture dropped
    assert share(t5 == 1, black) == 0  # without its picture a reflection is not told
    assert share(t5 == 1, ~black) == pytest.approx(0.6 * 0.8, abs=NEAR)
    assert share(t5 == 0, black) == pytest.approx(0.4, abs=NEAR)  # independent
    assert (task.caught["clip"] == 9).all() and (task.caught["x0"] == 7).all()  # CLIP keeps the prompt


@pytest.mark.parametrize("drops, t5, condition", [
    ({}, {1}, {1}), ({"drop_reflection": 1}, {2}, {1}), ({"drop_image": 1}, {2}, {-5}), ({"drop_text": 1}, {0}, {1}),
    ({"drop_text": 1, "drop_image": 1}, {0}, {-5}),
])
def test_dropped_always_or_never(drops, t5, condition):
    task = corrector(**{"drop_reflection": 0, "drop_image": 0, "drop_text": 0, **drops})
    CorrectorTask.loss(task, 0, step_generator(0, 0))
    assert (set(task.caught["t5"].tolist()), set(task.caught["condition"].tolist())) == (t5, condition)


def test_the_published_dropouts_are_the_defaults():
    model = CorrectorModel(base="none")
    assert (model.drop_reflection, model.drop_image, model.drop_text, model.guidance) == (0.1, 0.1, 0.1, 1.0)
    assert (model.rank, model.alpha, model.time_mean, model.condition_offset) == (32, None, 0.0, None)


@pytest.mark.parametrize("mean", [0.0, 1.2])
def test_times_are_logit_normal_and_noise_is_normal(mean):
    task = corrector(time_mean=mean)
    CorrectorTask.loss(task, 0, step_generator(0, 0))
    for values, centre in ((torch.logit(task.caught["t"]), mean), (task.caught["noise"], 0)):
        assert float(values.mean()) == pytest.approx(centre, abs=0.03)
        assert float(values.std()) == pytest.approx(1, abs=0.03)


def test_every_row_counts_once_in_the_evaluation_loss():
    """Five rows in batches of two: a mean over rows, then over the five times."""
    task = corrector()
    task.config = config(batch=2)
    task._forward = None
    task.held_bank = {k: torch.arange(5.0)[:, None] if k in ("good", "flawed") else torch.zeros(5, 1).long()
                      for k in task.bank}
    task._error = lambda forward, x0, noise, t, texts, condition: x0.mean() * t[0]
    found = CorrectorTask.evaluation_loss(task)
    assert found == pytest.approx({"eval_loss": 1.0, **{f"eval_loss_{t}": 2 * t for t in EVAL_TIMES}})


# The base.

def base(**changes):
    """As `corrector`: one scene with texts 10 and 11; 0 is the empty text. And
    one correction, of picture 1 to picture 6, with text 20."""
    model = BaseModel(vae="none", text="none", text_length=1, **changes)
    texts = torch.tensor([[[10], [11]]])
    task = SimpleNamespace(config=config(batch=MANY), m=model, distil_from=10, ids=None, caught=[],
                           bank={"latents": full(4, 1, 1, 1).half(), "clip": texts, "t5": texts,
                                 "edit_good": full(6, 1, 1, 1).half(), "edit_flawed": full(1, 1, 1, 1).half(),
                                 "edit_clip": torch.tensor([[20]]), "edit_t5": torch.tensor([[20]])},
                           empty=(torch.tensor([[0]]), torch.tensor([[0]])))
    task._encode = lambda clip, t5: (clip.float()[:, :, None], t5.float())
    task._scenes, task._edits = (lambda g: BaseTask._scenes(task, g)), (lambda g: BaseTask._edits(task, g))
    return task


def test_the_base_learns_the_velocity_of_its_texts():
    task = base()

    def forward(x, states, pooled, t, guidance, condition):
        assert torch.equal(states[:, 0], pooled) and (guidance == 1).all()  # both encoders see the same text
        task.caught, task.condition = pooled[:, 0], condition
        picture = 4 if condition is None else 6
        return (x - picture) / t[:, None, None]  # noise - picture, solved from x = (1 - t) picture + t noise
    task.forward = forward
    assert float(BaseTask.loss(task, 0, step_generator(0, 0))) < 1e-6
    task.forward = lambda x, *args: forward(x, *args) + 3
    assert float(BaseTask.loss(task, 0, step_generator(0, 0))) == pytest.approx(9, abs=1e-3)
    assert task.condition is None
    shares = {text: float((task.caught == text).float().mean()) for text in (0, 10, 11)}
    assert shares == pytest.approx({0: 0.1, 10: 0.45, 11: 0.45}, abs=NEAR)
    task = base(edits=1.0)
    task.forward = forward
    assert float(BaseTask.loss(task, 0, step_generator(0, 0))) < 1e-6
    assert (task.condition == 1).all() and task.condition.shape == (MANY, 1, 1)  # the flawed picture is never dropped
    shares = {text: float((task.caught == text).float().mean()) for text in (0, 20)}
    assert shares == pytest.approx({0: 0.1, 20: 0.9}, abs=NEAR)


def test_guidance_is_distilled_from_the_step_on_that_the_settings_say():
    task = base()
    task.forward = lambda x, *args: torch.zeros_like(x)
    called = []
    task._guided = lambda target, *args: (called.append(1), (target * 0 + 2, torch.ones(len(target))))[1]
    assert float(BaseTask.loss(task, 9, step_generator(0, 9))) > 2 and not called
    assert float(BaseTask.loss(task, 10, step_generator(0, 10))) == 4 and called


@pytest.mark.parametrize("condition", [None, 8])
def test_guided_targets(condition):
    """v + (g - 1)(with text - without), for the first half, where the text is not dropped: 5 with, 2 without."""
    task, asked, n = base(), [], 400

    def forward(x, states, pooled, t, guidance, seen):
        assert torch.equal(states[:, 0], pooled) and torch.equal(x[:, 0, 0], t) and (guidance == 1).all()
        assert seen is None if condition is None else (seen == condition).all() and len(seen) == len(x)
        asked.append(len(x))
        return torch.where(states > 0, 5.0, 2.0)
    task.forward = forward
    target, drop = full(1, n, 1, 1), torch.zeros(n, dtype=torch.bool)
    drop[:40] = drop[-40:] = True
    t = torch.rand(n)
    found, guidance = BaseTask._guided(task, target, t[:, None, None], t, full(7, n, 1, 1), full(7, n, 1), drop,
                                       None if condition is None else full(condition, n, 1, 1), step_generator(0, 0))
    assert asked == [n] and (target == 1).all()  # half of the batch twice, and the targets given stay what they were
    chosen = guidance[40:200]
    assert (guidance[:40] == 1).all() and (guidance[200:] == 1).all()
    assert 1 <= chosen.min() < 1.1 and 4.4 < chosen.max() <= 4.5
    assert torch.allclose(found[:, 0, 0], 1 + (guidance - 1) * 3)
    assert not found.requires_grad


# The autoencoder.

def test_the_autoencoder_is_told_of_squares_outlines_and_its_latents():
    task = SimpleNamespace(pictures=np.zeros((3, 8, 8, 3), np.uint8), config=config(batch=5), scale=4, kl=0.5,
                           vae=SimpleNamespace(config=SimpleNamespace(latent_channels=2)))

    def loss(off, mean, logvar):
        task.rebuild = lambda x, noise: (x + off, full(mean, *noise.shape), full(logvar, *noise.shape))
        return float(VaeTask.loss(task, 0, step_generator(0, 0)))
    assert loss(0, 0, 0) == 0
    assert loss(-0.5, 0, 0) == pytest.approx(0.25 + 0.2 * 0.5)
    assert loss(0, 2, 0) == pytest.approx(0.5 * 0.5 * 4)
    assert loss(0, 0, 1) == pytest.approx(0.5 * 0.5 * (np.e - 2))


# What all tasks share.

def test_the_learning_rate_rises_stays_and_falls():
    c = config(steps=100, warmup=10, cooldown=0.2)
    assert [learning_rate(c, step) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 0.5, 0.05])
    assert [learning_rate(config(steps=10), step) for step in (0, 5, 9)] == [1, 1, 1]
    overlapping = config(steps=10, warmup=10, cooldown=1.0)
    assert [learning_rate(overlapping, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5 * 0.6, 0.1])


def test_averages_follow_faster_at_first():
    """Decay (1 + step) / (10 + step), at most the one that is set."""
    p = nn.Parameter(torch.tensor([0.0]))
    averages = Averages({"p": p}, 0.9)
    for step, weight, mean in ((0, 10, 0.1 * 0 + 0.9 * 10), (1, 20, 2 / 11 * 9 + 9 / 11 * 20),
                               (1000, 38, 0.9 * 18 + 0.1 * 38)):
        p.data.fill_(weight)
        averages.update(step)
        assert float(averages.mean["p"]) == pytest.approx(mean)
    for _ in range(2):
        averages.enter()
        assert float(p) == pytest.approx(20) and averages.swapped
    averages.leave()
    assert float(p) == 38 and float(averages.mean["p"]) == pytest.approx(20)
    off = Averages({"p": p}, 0)
    off.update(0)
    off.enter()
    assert off.mean == {} and float(p) == 38


class Rows:
    """The mean square of what a line is off, over rows that are handed out one batch after the other."""

    def __init__(self, batch):
        torch.manual_seed(0)
        self.model, self.data, self.generators = nn.Linear(3, 1), {}, []
        self.batches = iter(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).split(batch))

    def named_parameters(self):
        return self.model.named_parameters()

    def matrices(self):
        return {"weight"}

    def loss(self, step, generator):
        self.generators.append(generator.initial_seed())
        return (self.model(next(self.batches)) - 1).square().mean()


def run(task, **changes) -> _Run:
    return _Run(config(**changes), task, "c", lambda line: None)


def test_accumulated_batches_are_one_large_batch():
    whole, parts = run(Rows(8), clip=0), run(Rows(2), clip=0, accumulate=4)
    (loss, norm), (loss_of_parts, norm_of_parts) = whole.gradients(), parts.gradients()
    assert loss_of_parts == pytest.approx(loss) and norm_of_parts == pytest.approx(norm) and norm > 0.1
    for a, b in zip(whole.task.model.parameters(), parts.task.model.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
    assert len(set(parts.task.generators)) == 4
    assert len({step_generator(*key).initial_seed() for key in
                [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 2)]}) == 6


def test_gradients_are_clipped_and_the_norm_is_told_as_it_was():
    free, clipped = run(Rows(8), clip=0), run(Rows(8), clip=0.25)
    (_, norm), (_, told) = free.gradients(), clipped.gradients()
    assert told == norm > 0.25

    def length(r):
        return float(torch.cat([p.grad.flatten() for p in r.task.model.parameters()]).norm())
    assert length(free) == pytest.approx(norm) and length(clipped) == pytest.approx(0.25, rel=1e-4)


def test_the_share_of_the_peak_is_what_a_weight_moves_by():
    """AdamW's first step is one learning rate against the gradient's sign, after the decay."""
    p = nn.Parameter(torch.tensor([2.0, 2.0]))
    task = SimpleNamespace(named_parameters=lambda: [("p", p)], matrices=set)
    optimizers = Optimizers(config(lr=0.1, weight_decay=0.5), task)
    p.grad = torch.tensor([3.0, -0.5])
    optimizers.step(0.4)
    assert p.tolist() == pytest.approx([2 * (1 - 0.04 * 0.5) - 0.04, 2 * (1 - 0.04 * 0.5) + 0.04])
    assert p.grad is None


def test_a_parameter_with_a_rate_of_its_own_moves_by_a_multiple():
    slow, fast = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    task = SimpleNamespace(named_parameters=lambda: [("slow", slow), ("fast", fast)], matrices=set,
                           rates=lambda: {"fast": 5.0})
    optimizers = Optimizers(config(lr=0.1, weight_decay=0.0), task)
    slow.grad, fast.grad = torch.tensor([3.0]), torch.tensor([-3.0])
    optimizers.step(0.4)
    assert [slow.item(), fast.item()] == pytest.approx([2 - 0.04, 2 + 5 * 0.04])
    assert set(optimizers.state()) >= {"slow/step", "fast/step"}


def test_muon_takes_the_matrices_and_adamw_the_rest():
    adamw, muon = Optimizers(config(optimizer="muon"), Rows(8)).parts
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(1, 3)]
    assert [p.shape for p in adamw.param_groups[0]["params"]] == [(1,)]
    assert len(Optimizers(config(), Rows(8)).parts) == 1
