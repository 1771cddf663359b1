"""What torchrun starts in each of two processes to test padded steps, with gloo on the CPU."""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from toy_crystals import toy_dataset
from trainers import CONFIGS, FAST, FakeGraphs, padded, trainer_of, weights

from sitenet.system.distributed import barrier, gathered, process_group, rank, world
from sitenet.training.cuda_graphs import common_size, padded_index


def check_padded_steps_have_one_size_and_the_same_gradients():
    """Distances are float32, as in ``test_padding_changes_no_crystal``. One crystal leaves the
    second rank without any."""
    for name, config in CONFIGS.items():
        config = config.replace(precision="float32")
        data = toy_dataset(12, names=("size_A", "other"))
        data.targets[::3, 1] = np.nan
        for batch in (np.array([7, 2, 5]), np.array([4])):
            trainers = [trainer_of(config, data, double=True) for _ in range(2)]
            plain, other = trainers
            loss = plain.gradients.of_step([batch])
            store = other.data.store
            shares = [batch[k :: world()] for k in range(world())]
            places, room = common_size([*map(len, shares)], [*map(store.room, shares)])
            assert len(set(gathered((places, room)))) == 1
            index = torch.from_numpy(padded_index(shares, places))
            padded_loss = other.gradients.of_padded_batch(index, room)
            torch.testing.assert_close(padded_loss.float(), loss, rtol=1e-6, atol=1e-7)
            for p, q in zip(*(t.optimizer.parameters for t in trainers), strict=True):
                want = torch.zeros_like(p) if p.grad is None else p.grad
                torch.testing.assert_close(q.grad, want, rtol=1e-6, atol=1e-8, msg=name)
            embeddings = [t.model.embedding.weight for t in trainers]
            torch.testing.assert_close(*embeddings, rtol=0, atol=0, msg=name)


def check_epochs_replay_the_same_sizes_on_all_ranks():
    plain, other = padded(trainer_of(FAST)), trainer_of(FAST)
    other.captured = other.padded_steps(FakeGraphs(100))
    for _ in range(3):
        assert other.train_epoch() == plain.train_epoch()
    assert other.captured.captured > 0
    replayed = [key for key, size in other.captured.sizes.items() if size.replay is not None]
    assert all(keys == replayed for keys in gathered(replayed))


def check_a_capture_that_fails_on_one_rank_ends_them_on_all():
    plain, other = padded(trainer_of(FAST)), trainer_of(FAST)
    other.captured = other.padded_steps(FakeGraphs(100 if rank() == 0 else 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert other.train_epoch() == plain.train_epoch()
    assert other.captured.graphs is None and other.captured.captured == 0
    texts = [str(w.message) for w in caught if "CUDA graph" in str(w.message)]
    assert len(texts) == (1 if rank() == 0 else 0)
    if rank() == 0:
        assert "permitted when stream is capturing, on rank 1);" in texts[0]


def check_an_epoch_begins_with_the_weights_of_rank_0():
    trainer = trainer_of(FAST.replace(ema=0.9))
    before = weights(trainer.model)
    models = trainer.model, trainer.average.average
    if rank() == 1:
        with torch.no_grad():
            for p in (p for model in models for p in model.parameters()):
                p.add_(0.125)
    trainer.train_epoch()
    for model in models:
        first, second = gathered({k: x.numpy() for k, x in weights(model).items()})
        assert all(np.array_equal(first[k], second[k], equal_nan=True) for k in first)
    # A rate of some 1e-2 moves no weight by 0.125 in three steps: rank 0 has not taken over 1's.
    change = trainer.model.decoder.weight - before["decoder.weight"]
    assert change.abs().max() < 0.1


if __name__ == "__main__":
    torch.set_num_threads(1)
    barrier()  # before there is a group
    assert world() == 1
    for number in range(2):  # a second group meets as well
        with process_group(torch.device("cpu")):
            assert world() == 2 and gathered(rank()) == [0, 1]
            barrier()
            if number:
                check_padded_steps_have_one_size_and_the_same_gradients()
                check_epochs_replay_the_same_sizes_on_all_ranks()
                check_a_capture_that_fails_on_one_rank_ends_them_on_all()
                check_an_epoch_begins_with_the_weights_of_rank_0()
        barrier()
    print("checked")
