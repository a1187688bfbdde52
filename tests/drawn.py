# SPDX-License-Identifier: MIT
"""Drawn sequences once more, from their formulas (Documentation/data.md), in nothing of
Tenon's: Philox 4x32-10, the permutation, recall and Markov chains."""
import math

MASK32, MASK64 = 2 ** 32 - 1, 2 ** 64 - 1


def fnv(name):
    value = 0xcbf29ce484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001b3 & MASK64
    return value


def u64(seed, stream, index):
    """Low half of one block: counter (index, stream), key seed."""
    counter = [index & MASK32, index >> 32, stream & MASK32, stream >> 32]
    key = [seed & MASK32, seed >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [right >> 32 ^ counter[1] ^ key[0], right & MASK32,
                   left >> 32 ^ counter[3] ^ key[1], left & MASK32]
        key = [(key[0] + 0x9E3779B9) & MASK32, (key[1] + 0xBB67AE85) & MASK32]
    return counter[1] << 32 | counter[0]


def uniform(seed, stream, index):
    return (u64(seed, stream, index) >> 11 | 1) / 2 ** 53


def permute(seed, stream, i, n):
    """Eight Feistel rounds over an even number of bits, walked until below n."""
    half = next(h for h in range(1, 33) if 4 ** h >= n)
    mask = 2 ** half - 1
    while True:
        left, right = i >> half, i & mask
        for r in range(8):
            left, right = right, left ^ u64(seed, stream ^ 0xBB67AE8584CAA73B, r << 32 | right) & mask
        i = left << half | right
        if i < n:
            return i


def mqar(seed, j, T, V, p, form, a=0.01, noise=False, other=None):
    """(inputs, targets) of sequence j of the split of this seed; or with other values."""
    def P(name, i, m):
        return permute(seed, fnv(name) + j & MASK64, i, m)

    def R(name, i):
        return u64(seed, fnv(name), i)

    keys = [1 + P("mqar.key", i, V // 2 - 1) for i in range(p)]
    if form == "study":
        values = [V // 2 + R("mqar.value", j * p + i) % (V // 2) for i in range(p)]
        rest = {t: 1 + R("mqar.noise", j * T + t) % (V - 1) for t in range(2 * p, T)}
        asked = {T - p + r: P("mqar.query", r, p) for r in range(p)}
    else:
        values = [V // 2 + P("mqar.value", i, V // 2) for i in range(p)]
        rest = {t: R("mqar.noise", j * T + t) % V if noise else 0 for t in range(2 * p, T)}
        M = (T - 2 * p) // 2
        order = sorted(range(M), key=lambda i: (-math.log(uniform(seed, fnv("mqar.slot"), j * M + i))
                                                / math.pow(i + 1, a - 1), i))
        asked = {2 * p + 2 * order[r]: r for r in range(p)}
    values = other or values
    inputs = [x for pair in zip(keys, values) for x in pair]
    inputs += [keys[asked[t]] if t in asked else rest[t] for t in range(2 * p, T)]
    return inputs, [values[asked[t]] if t in asked else -1 for t in range(T)]


class Markov:
    """The chain of one DATA_SEED."""

    def __init__(self, seed, order, m):
        self.seed, self.order, self.m, self.known = seed, order, m, {}

    def context(self, tokens):
        """([successor], [weight]) behind some tokens."""
        c = tokens[-1] if self.order == 1 else tokens[-2] * self.m + tokens[-1]
        if c not in self.known:
            stream = fnv("markov.weight")
            w = [-math.log(uniform(self.seed, stream, 10 * c + 2 * i)
                           * uniform(self.seed, stream, 10 * c + 2 * i + 1)) for i in range(5)]
            self.known[c] = ([permute(self.seed, fnv("markov.successor") + c & MASK64, i, self.m)
                              for i in range(5)], [x / sum(w) for x in w])
        return self.known[c]

    def row(self, split, j, T):
        """(inputs, targets) of sequence j; split 0, 1, 2."""
        x = []
        for t in range(T + 1):
            u = uniform(self.seed + split, fnv("markov.draw"), j * (T + 1) + t)
            if t < self.order:
                x.append(int(u * self.m))
            elif u >= 0.8:
                x.append(int(self.m * (u - 0.8) / 0.2))
            else:
                total, (successors, weights) = 0.0, self.context(x)
                for y, w in zip(successors, weights):
                    total += w
                    if total > u / 0.8:
                        break
                x.append(y)
        return x[:-1], x[1:]

    def loss(self, inputs, targets):
        """Its own, summed over a sequence."""
        nats = 0.0
        for t, y in enumerate(targets):
            if t < self.order - 1:
                nats += math.log(self.m)
                continue
            successors, weights = self.context(inputs[:t + 1])
            nats -= math.log(0.2 / self.m + 0.8 * sum(w for s, w in zip(successors, weights)
                                                      if s == y))
        return nats


def training_number(run_seed, i, rows):
    """Which sequence the i-th of a run is."""
    return permute(run_seed, fnv("data.order") + i // rows & MASK64, i % rows, rows)
