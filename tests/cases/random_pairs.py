"""Random pairs for tests of the model: merged, and the same written out site by site."""

import torch

from sitenet.pairs.pairs import Pairs


def random_pairs(sizes=(4, 3, 1), longest=12, images=2, seed=0, elements=(1, 90)):
    """Return merged pairs of random crystals.

    Args:
        sizes: number of orbits per crystal.
        longest: largest number of pairs per row, besides the self pair.
        images: supercell sites per site; without effect on the model.
        seed: seed of the random numbers.
        elements: lowest atomic number, and one past the highest.

    Returns:
        Pairs on the CPU, sorted as ``find_pairs`` sorts them. Every row has a self pair, at
        distance 0; the other distances are random.
    """
    g = torch.Generator().manual_seed(seed)

    def integers(low, high, shape=()):
        return torch.randint(low, high, shape, generator=g)

    crystals = []
    for n in sizes:
        offsets, sites, distance = [0], [], []
        for row in range(n):
            others = int(integers(0, longest + 1))
            j = torch.cat([torch.tensor([row]), integers(0, n, (others,))])
            d = 1 + 9 * torch.rand(others + 1, generator=g, dtype=torch.float64)
            d[0] = 0
            order = torch.argsort(d)
            order = order[torch.argsort(j[order], stable=True)]
            sites.append(j[order].int())
            distance.append(d[order])
            offsets.append(offsets[-1] + others + 1)
        distance = torch.cat(distance)
        multiplicity = integers(1, 5, (len(distance),)).int()
        count = integers(1, 4, (n,)).int()
        crystals.append(
            Pairs(
                offsets=torch.tensor(offsets),
                sites=torch.cat(sites),
                distance=distance,
                multiplicity=multiplicity.masked_fill(distance == 0, 1),
                numbers=integers(*elements, (n,)),
                oxidation=integers(-2, 4, (n,)).double(),
                count=count,
                orbit=torch.repeat_interleave(torch.arange(n), count).int(),
                crystals=torch.tensor([0, n]),
                num_sites=count.sum()[None].long(),
                images=torch.tensor([images]),
            )
        )
    return Pairs.batch(crystals)


def written_out(pairs):
    """Return the same pairs with one row per site and multiplicity 1, as with ``merge=False``."""
    first = pairs.count.cumsum(0) - pairs.count  # the first site of each orbit
    offsets, sites, distance = [0], [], []
    for row in pairs.orbit.tolist():
        begin, end = pairs.offsets[row : row + 2].tolist()
        m = pairs.multiplicity[begin:end]
        j = torch.repeat_interleave(pairs.sites[begin:end].long(), m)
        sites.append((first[j] + torch.arange(len(j)) % pairs.count[j]).int())
        distance.append(torch.repeat_interleave(pairs.distance[begin:end], m))
        offsets.append(offsets[-1] + len(j))
    orbit = pairs.orbit.long()
    return Pairs(
        offsets=torch.tensor(offsets),
        sites=torch.cat(sites),
        distance=torch.cat(distance),
        multiplicity=torch.ones(offsets[-1], dtype=torch.int32),
        numbers=pairs.numbers[orbit],
        oxidation=pairs.oxidation[orbit],
        count=torch.ones(len(orbit), dtype=torch.int32),
        orbit=torch.arange(len(orbit), dtype=torch.int32),
        crystals=torch.cat([torch.zeros(1, dtype=torch.int64), pairs.num_sites.cumsum(0)]),
        num_sites=pairs.num_sites,
        images=pairs.images,
    )
