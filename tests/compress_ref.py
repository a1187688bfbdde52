# SPDX-License-Identifier: MIT
"""Compressed states once more, in numpy and from their formulas (Documentation/compress.md):
a model of gla or mfa_gla alone with LayerNorm, its states, bases, and what each way leaves of outputs."""
import numpy as np

EPSILON = 1e-5


def norm(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return x * p[name + ".weight"] + p[name + ".bias"]


def heads_of(x, n):
    """[B,T,n*w] -> [B,n,T,w]"""
    return x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3)


class Head:
    """Operands of head h, of all sequences: q, k, alpha [B,T,K], v [B,T,V]; states [B,T,K,V]."""

    def __init__(self, q, k, v, alpha, scale):
        self.q, self.k, self.v, self.alpha, self.scale = q, k, v, alpha, scale
        self.S = self.run(alpha, k, v)
        self.o = self.read(self.S, q)

    @staticmethod
    def run(move, k, v):
        """S_t = move_t S_(t-1) + k_t v_t^T; move [B,T,d] (diagonal) or [B,T,d,d]."""
        state, out = np.zeros((k.shape[0], k.shape[2], v.shape[2])), []
        for t in range(k.shape[1]):
            a = move[:, t]
            state = a[..., None] * state if a.ndim == 2 else a @ state
            state = state + k[:, t, :, None] * v[:, t, None, :]
            out.append(state)
        return np.stack(out, 1)

    def read(self, S, q):
        return self.scale * np.einsum("btkv,btk->btv", S, q)


class Model:
    """Forward of all sequences at once. change(layer, h, head) -> o, or None for head.o."""

    def __init__(self, p, layers, heads, tau, scalar):
        self.p, self.layers, self.heads, self.tau, self.scalar = p, layers, heads, tau, scalar

    def alpha(self, at, x, keys):
        p = self.p
        z = x @ p[at + "gk_proj.weight"].T + p[at + "gk_proj.bias"]
        alpha = heads_of(np.exp(-np.log1p(np.exp(-z)) / self.tau), self.heads)
        return np.broadcast_to(alpha, (*alpha.shape[:3], keys))

    def operands(self, at, x):
        """q, k, v of heads [B,n,T,.]; mfa_gla has one key for all, and maps of latents."""
        p = self.p
        if at + "Q_c" not in p:
            return (heads_of(x @ p[f"{at}{s}_proj.weight"].T, self.heads) for s in "qkv")
        q, k, v = (x[:, None] @ p[f"{at}S_{s}.weight"].T for s in "qkv")
        return q @ p[at + "Q_c"], np.repeat(k, self.heads, 1), v @ p[at + "V_c"]

    def mix(self, layer, x, change):
        at, p = f"h.{layer}.attn.", self.p
        q, k, v = self.operands(at, x)
        alpha = self.alpha(at, x, q.shape[-1])
        out = []
        for h in range(self.heads):
            head = Head(q[:, h], k[:, h], v[:, h], alpha[:, h], q.shape[-1] ** -0.5)
            out.append(change(layer, h, head) if change else head.o)
        return np.concatenate(out, -1) @ p[at + "o_proj.weight"].T

    def logits(self, ids, change=None):
        p = self.p
        x = p["wte.weight"][ids] + p["wpe.weight"][:ids.shape[1]]
        for layer in range(self.layers):
            x = x + self.mix(layer, norm(p, f"h.{layer}.ln_1", x), change)
        return norm(p, "ln_f", x) @ p["lm_head.weight"].T

    def states(self, ids):
        """{(layer, h): Head} of an unchanged forward."""
        found = {}

        def keep(layer, h, head):
            found[layer, h] = head
            return head.o
        self.logits(ids, keep)
        return found


def loss(logits, targets, vocab):
    logits = logits[..., :vocab]
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return (total - picked)[targets >= 0].mean()


def top(a):
    """(eigenvalues, vectors as columns), the largest first."""
    values, vectors = np.linalg.eigh(a)
    return values[::-1], vectors[:, ::-1]


class Bases:
    """What is learned of one head."""

    def __init__(self, head):
        tokens = head.q.shape[0] * head.q.shape[1]
        self.M_K = np.einsum("btkv,btlv->kl", head.S, head.S) / tokens
        self.M_V = np.einsum("btkv,btkw->vw", head.S, head.S) / tokens
        self.C_q = np.einsum("btk,btl->kl", head.q, head.q) / tokens
        self.U, self.Y = top(self.M_K)[1], top(self.M_V)[1]
        values, vectors = top(self.C_q)
        root = np.sqrt(np.maximum(values, 1e-12 * values[0]))
        A, inverse = vectors * root @ vectors.T, vectors / root @ vectors.T
        Z = top(A @ self.M_K @ A)[1]
        self.write, self.read = A @ Z, inverse @ Z
        states = head.S.reshape(tokens, -1)
        n = min(2048, tokens)
        taken = states[np.arange(n) * tokens // n]
        self.W = np.linalg.svd(taken, full_matrices=False)[2].T
        self.channels = np.argsort(-np.diag(self.C_q) * np.diag(self.M_K), kind="stable")


def compressed(row, basis, d, head, b):
    """o of a head [B,T,V] by one way, b its Bases."""
    if row == "value":
        Y = b.Y[:, :d]
        return head.read(head.run(head.alpha, head.k, head.v @ Y), head.q) @ Y.T
    if row == "select":
        c = b.channels[:d]
        return head.read(head.run(head.alpha[..., c], head.k[..., c], head.v), head.q[..., c])
    if row == "vectorised":
        return vectorised(d, head, b)
    W, R = (b.write[:, :d], b.read[:, :d]) if basis == "balanced" else (b.U[:, :d], b.U[:, :d])
    if row == "projected":
        return head.read(head.S, head.q @ R @ W.T)
    move = {"scalar": lambda: np.repeat(head.alpha[..., :1], d, -1),
            "diagonal": lambda: head.alpha @ (W * W),
            "galerkin": lambda: np.einsum("kd,btk,ke->btde", W, head.alpha, R)}[row]()
    return head.read(head.run(move, head.k @ W, head.v), head.q @ R)


def vectorised(d, head, b):
    W, (B, T, K), out = b.W[:, :d], head.k.shape, []
    c = np.zeros((B, d))
    for t in range(T):
        S = (c @ W.T).reshape(B, K, -1) * head.alpha[:, t, :, None]
        S = S + head.k[:, t, :, None] * head.v[:, t, None, :]
        c = S.reshape(B, -1) @ W
        out.append((c @ W.T).reshape(B, K, -1))
    return head.read(np.stack(out, 1), head.q)


def expected(d, head):
    """Mean error of the projection onto a uniform basis: of many drawn ones, by no formula."""
    draw, K, n = np.random.default_rng(1), head.q.shape[-1], 4000
    S, q = head.S.reshape(-1, K, head.v.shape[-1]), head.q.reshape(-1, K)
    pairs = np.einsum("nkv,nlv,nm,nj->klmj", S, S, q, q)

    def square(P):
        return np.einsum("klmj,km,lj->", pairs, P, P)
    rest = (np.linalg.qr(draw.standard_normal((K, K)))[0][:, d:] for _ in range(n))
    return sum(square(U @ U.T) for U in rest) / n / square(np.eye(K))
