"""What a model makes of prompts: answers, their likelihood, the probabilities of classes, embeddings.

Fetching log-probabilities from a model stands apart from the arithmetic on them, which takes plain arrays and can be
checked by hand. Nothing is sampled: the same adapter and prompt give the same score, whoever shares the batch, up to
the rounding of the hardware. A prompt that does not fit gets no score rather than a score of something else.

A class is scored by the likelihood of its whole text, end of sequence included. The prompt is encoded once; the classes
follow as one prefix tree in which every token sees the prompt and its own ancestors, so that 77 classes cost about as
much as one long answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation.errors import UsageError
from curation.records import SCORES, Message, canonical_json, digest, table, user_message
from training.adapters import Loaded, open_model
from training.examples import plain_ids, prompt_ids

BATCH_TOKENS = 8192
"""How many tokens go through the model at once, padding and classes included."""

MAX_NEW_TOKENS = 96
TREE_NODES = 64
"""How many nodes of a prefix tree go through the model at once. Every node is compared with all of its piece though it
sees its ancestors alone, so small pieces waste less; far smaller ones share too few beginnings."""

# Logits held at once, in numbers, and how many tokens of the vocabulary they are of on a CPU. 1 MB of float32 stays in a
# core's own cache; a GPU would rather have fewer calls.
_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}
_TILE = 512

Prompt = str | Sequence[Message]


# ------------------------------------------------------------------------------------------ arithmetic


def mean_nll(logprobs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Length-normalised negative log-likelihood, in nats per token: ``-sum(mask * logprobs) / sum(mask)`` per row.

    Both arrays are (rows, tokens). A row without any token is NaN. Of the greedy answer this is the cheap and strong
    uncertainty of Aichberger et al. 2024 (arXiv 2412.15176).

    >>> mean_nll(np.log([[0.5, 0.25, 0.1]]), np.array([[1, 1, 0]])) / np.log(2)
    array([1.5])
    """
    mask = np.asarray(mask, dtype=np.float64)
    counts = mask.sum(axis=-1)
    total = -(np.where(mask > 0, logprobs, 0.0) * mask).sum(axis=-1)
    return np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def class_probabilities(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities within the closed set: the softmax over the last axis of the log-likelihoods of whole answers.

    >>> class_probabilities(np.log([[0.3, 0.1]]))
    array([[0.75, 0.25]])
    """
    logprobs = np.asarray(logprobs, dtype=np.float64)
    shifted = np.exp(logprobs - logprobs.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """The probability of the best class, per row of (rows, classes)."""
    return np.asarray(probabilities).max(axis=-1)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """The best class's probability less the second best's (Scheffer et al. 2001); 1.0 where there is one class only."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape[-1] < 2:
        return np.ones(probabilities.shape[:-1])
    ordered = np.sort(probabilities, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats, per row of (rows, classes)."""
    p = np.asarray(probabilities, dtype=np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


# ---------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text, its length in tokens, nats per token (the end included), whether it ended itself."""

    text: str
    tokens: int
    nll: float
    stopped: bool


@dataclass(frozen=True)
class ClassScores:
    """``logprobs`` (rows, classes) of whole answers, in nats; ``lengths`` (classes) in tokens, the end included."""

    classes: tuple[str, ...]
    logprobs: np.ndarray
    lengths: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Within the closed set, (rows, classes)."""
        return class_probabilities(self.logprobs)

    @property
    def best(self) -> np.ndarray:
        """Index of the likeliest class per row; of equals the first."""
        return self.logprobs.argmax(axis=-1)


def score_pool(
    adapter: str | Path | Loaded,
    view: pa.Table,
    *,
    classes: Sequence[str] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    embeddings: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """One row of SCORES per record of a VIEW, in order of first appearance.

    With ``classes`` the completion is the likeliest class, ``nll`` its nats per token, ``confidence`` and ``margin`` its
    standing within the closed set, ``entropy`` its doubt over it. Without, the completion is the greedy answer and those
    three are null. A record whose prompt leaves no room for an answer has null scores. An empty view gives an empty table.
    """
    rows = dict(zip(view["record"].to_pylist(), view["messages"].to_pylist(), strict=True))
    if not rows:
        return SCORES.empty_table()
    loaded = open_model(adapter)
    asked = [_Asked(record, prompt_ids(messages, loaded.tokenizer)) for record, messages in rows.items()]
    room = loaded.max_length - (_longest(classes, loaded) if classes else max_new_tokens)
    fitting = [a for a in asked if len(a.ids) <= room]
    found = _score(loaded, fitting, classes, batch_tokens, max_new_tokens, embeddings, progress)
    views = {record: digest(canonical_json(messages)) for record, messages in rows.items()}
    return table(({"record": r, "view": views[r], **found.get(r, {})} for r in rows), SCORES)


@dataclass(frozen=True)
class _Asked:
    key: str
    ids: list[int]


def _score(
    loaded: Loaded,
    asked: Sequence[_Asked],
    classes: Sequence[str] | None,
    batch_tokens: int,
    max_new_tokens: int,
    embeddings: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, Any]]:
    tree = ClassTree.of(classes, loaded.tokenizer) if classes else None
    found: dict[str, dict[str, Any]] = {}
    for batch in _batches(asked, batch_tokens, tree.nodes if tree else max_new_tokens):
        prompts = Prefill(loaded, [a.ids for a in batch])
        rows = _class_rows(prompts, tree) if tree else _answer_rows(prompts, max_new_tokens)
        vectors = prompts.mean_states() if embeddings else [None] * len(batch)
        for a, row, vector in zip(batch, rows, vectors, strict=True):
            found[a.key] = {**row, "embedding": vector}
        if progress:
            progress(len(found), len(asked))
    return found


def _class_rows(prompts: Prefill, tree: ClassTree) -> list[dict[str, Any]]:
    scores = ClassScores(tree.classes, class_logprobs(prompts, tree), tree.lengths)
    return class_rows(scores, scores.probabilities)


def class_rows(scores: ClassScores, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """What a row of SCORES says of each record: its likeliest class by ``probabilities``, (rows, classes), its standing
    among the others, and the nats per token of it by ``scores``."""
    best = probabilities.argmax(axis=-1)
    nll = -np.take_along_axis(scores.logprobs, best[:, None], axis=1)[:, 0] / scores.lengths[best]
    measures = (nll, confidence(probabilities), margin(probabilities), entropy(probabilities))
    return [
        {"nll": n, "confidence": c, "margin": m, "entropy": e, "completion": scores.classes[b]}
        for n, c, m, e, b in zip(*(values.tolist() for values in measures), best, strict=True)
    ]


def _answer_rows(prompts: Prefill, max_new_tokens: int) -> list[dict[str, Any]]:
    return [{"nll": a.nll, "completion": a.text} for a in greedy(prompts, max_new_tokens)]


def _batches(asked: Sequence[_Asked], batch_tokens: int, extra: int) -> Iterator[list[_Asked]]:
    """Batches of prompts of about the same length, ties by key, so that neither order nor chance shapes them."""
    batch: list[_Asked] = []
    for one in sorted(asked, key=lambda a: (len(a.ids), a.key)):
        if batch and (len(batch) + 1) * (len(one.ids) + extra) > batch_tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _longest(classes: Sequence[str], loaded: Loaded) -> int:
    return 1 + max(len(plain_ids(c, loaded.tokenizer)) for c in classes)


def generate(
    adapter: str | Path | Loaded,
    prompts: Sequence[Prompt],
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Answer]:
    """The greedy answer to each prompt, in order. A prompt is a text or a list of messages.

    A prompt that leaves no room for an answer loses its beginning, and a warning says so. No prompts give no answers.
    """
    loaded = open_model(adapter)
    asked = _asked(loaded, prompts, max_new_tokens)
    answers: dict[str, Answer] = {}
    for batch in _batches(asked, batch_tokens, max_new_tokens):
        given = greedy(Prefill(loaded, [a.ids for a in batch]), max_new_tokens)
        answers.update(zip((a.key for a in batch), given, strict=True))
    return [answers[a.key] for a in asked]


def score_classes(
    adapter: str | Path | Loaded,
    prompts: Sequence[Prompt],
    classes: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    before: Callable[[list[int]], None] | None = None,
) -> ClassScores:
    """The log-likelihood of every class as the answer to every prompt. Raises ``UsageError`` on no or equal classes.

    ``before`` is told which prompts, by their places, go through the model next.
    """
    loaded = open_model(adapter)
    tree = ClassTree.of(classes, loaded.tokenizer)
    asked = _asked(loaded, prompts, _longest(classes, loaded))
    found: dict[str, np.ndarray] = {}
    for batch in _batches(asked, batch_tokens, tree.nodes):
        if before:
            before([int(a.key) for a in batch])
        scores = class_logprobs(Prefill(loaded, [a.ids for a in batch]), tree)
        found.update(zip((a.key for a in batch), scores, strict=True))
    rows = [found[a.key] for a in asked]
    return ClassScores(tree.classes, np.array(rows).reshape(len(rows), len(tree.classes)), tree.lengths)


def predict(
    adapter: str | Path | Loaded,
    prompts: Sequence[Prompt],
    classes: Sequence[str] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """One answer per prompt: the likeliest class where there are classes, else the greedy answer."""
    if not classes:
        return [answer.text for answer in generate(adapter, prompts, max_new_tokens)]
    scores = score_classes(adapter, prompts, classes)
    return [scores.classes[i] for i in scores.best]


def embed(
    adapter: str | Path | Loaded,
    prompts: Sequence[Prompt],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The mean hidden state of each prompt, float32 (prompts, hidden), in order; no prompts give no rows."""
    loaded = open_model(adapter)
    asked = _asked(loaded, prompts, 0)
    found: dict[str, np.ndarray] = {}
    for batch in _batches(asked, batch_tokens, 0):
        states = Prefill(loaded, [a.ids for a in batch]).mean_states()
        found.update(zip((a.key for a in batch), states, strict=True))
        if progress:
            progress(len(found), len(asked))
    width = loaded.model.config.get_text_config().hidden_size
    return np.array([found[a.key] for a in asked], np.float32).reshape(len(asked), width)


def _asked(loaded: Loaded, prompts: Sequence[Prompt], reserve: int) -> list[_Asked]:
    room = loaded.max_length - reserve
    if room < 2:
        raise UsageError(
            f"{reserve} tokens of answer leave no room for a prompt in {loaded.max_length}",
            next="Ask for fewer tokens",
        )
    encoded = [prompt_ids(user_message(p) if isinstance(p, str) else p, loaded.tokenizer) for p in prompts]
    long = [i for i, ids in enumerate(encoded) if len(ids) > room]
    if long:
        warnings.warn(
            f"{len(long)} prompts are longer than {room} tokens and lose their beginning", stacklevel=3
        )
    # Zero-padded, so that equal lengths sort in the order given.
    return [
        _Asked(f"{i:09d}", ids if len(ids) <= room else ids[:1] + ids[1 - room :])
        for i, ids in enumerate(encoded)
    ]


# ------------------------------------------------------------------------------------------- the prompt


class Prefill:
    """A batch of prompts gone through the model once: hidden states, and the cache that answers start from.

    Padded on the right. Padding is masked wherever it could be seen and positions count real tokens alone, so a
    neighbour's length changes nothing.
    """

    def __init__(self, loaded: Loaded, prompts: Sequence[list[int]]) -> None:
        self.loaded = loaded
        self.device = next(loaded.model.parameters()).device
        self.lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        width = int(self.lengths.max())
        pad = loaded.tokenizer.pad_token_id
        ids = torch.tensor([p + [pad] * (width - len(p)) for p in prompts], device=self.device)
        self.mask = (torch.arange(width, device=self.device)[None] < self.lengths[:, None]).long()
        with torch.no_grad():
            out = _backbone(loaded.model)(input_ids=ids, attention_mask=self.mask, use_cache=True)
        self.states = out.last_hidden_state
        self.cache = out.past_key_values

    @property
    def last(self) -> torch.Tensor:
        """The hidden state after the last real token, (rows, hidden): what the first token of an answer comes from."""
        return self.states[torch.arange(len(self.lengths), device=self.device), self.lengths - 1]

    def mean_states(self) -> list[np.ndarray]:
        """The mean hidden state over each prompt's own tokens, float32."""
        kept = self.mask[..., None].float()
        means = (self.states.float() * kept).sum(1) / kept.sum(1)
        return list(means.cpu().numpy())


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _backbone(model: Any) -> Any:
    return _causal(model).base_model


def log_softmax(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token, in float32 whatever the model computes in: bfloat16 has three digits."""
    return torch.log_softmax(_logits(model, states), dim=-1)


def _logits(model: Any, states: torch.Tensor, tokens: range | None = None) -> torch.Tensor:
    """What the model's own forward would give before the softmax, in float32: for every token, or for a range of them."""
    causal = _causal(model)
    head = causal.get_output_embeddings()
    if tokens is None or len(tokens) == len(head.weight):
        logits = head(states).float()
    else:
        logits = _some_logits(head, states, tokens).float()
    config = causal.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    logits = logits if scale is None else logits * scale
    logits = logits if divisor is None else logits / divisor
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _some_logits(head: torch.nn.Linear, states: torch.Tensor, tokens: range) -> torch.Tensor:
    chosen = slice(tokens.start, tokens.stop)
    bias = None if head.bias is None else head.bias[chosen]
    return torch.nn.functional.linear(states, head.weight[chosen], bias)


# ------------------------------------------------------------------------------------------- the answer


@torch.no_grad()
def greedy(prompts: Prefill, max_new_tokens: int) -> list[Answer]:
    """The likeliest next token, again and again, until the end of sequence or ``max_new_tokens``.

    Rows that have ended leave the batch as soon as they are half of it.
    """
    model, eos = prompts.loaded.model, prompts.loaded.tokenizer.eos_token_id
    tokens: list[list[int]] = [[] for _ in prompts.lengths]
    logprobs: list[list[float]] = [[] for _ in prompts.lengths]
    alive = torch.arange(len(prompts.lengths), device=prompts.device)
    state, mask, cache = prompts.last, prompts.mask, prompts.cache
    position = prompts.lengths.clone()
    for _ in range(max_new_tokens):
        best = log_softmax(model, state).max(dim=-1)
        for row, token, logprob in zip(
            alive.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        ):
            if not tokens[row] or tokens[row][-1] != eos:
                tokens[row].append(token)
                logprobs[row].append(logprob)
        going = torch.tensor([tokens[row][-1] != eos for row in alive.tolist()], device=prompts.device)
        if not going.any():
            break
        token = best.indices
        if 2 * int(going.sum()) <= len(going):
            alive, token, position, mask = alive[going], token[going], position[going], mask[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = _backbone(model)(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        state, cache, position = out.last_hidden_state[:, -1], out.past_key_values, position + 1
    return [_answer(prompts.loaded, t, p) for t, p in zip(tokens, logprobs, strict=True)]


def _answer(loaded: Loaded, tokens: list[int], logprobs: list[float]) -> Answer:
    stopped = bool(tokens) and tokens[-1] == loaded.tokenizer.eos_token_id
    text = loaded.tokenizer.decode(
        tokens[:-1] if stopped else tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    values = np.array([logprobs])
    return Answer(text, len(tokens), float(mean_nll(values, np.ones_like(values))[0]), stopped)


# ------------------------------------------------------------------------------------------ the classes


@dataclass(frozen=True)
class ClassTree:
    """The classes as a prefix tree of tokens. Node 0 is the end of the prompt; every other node holds a token.

    ``parents[i]`` is the node before node i; ``paths[c]`` are the (node, next token) steps that spell class c, the end
    of sequence last.
    """

    classes: tuple[str, ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[tuple[int, int], ...], ...]
    lengths: np.ndarray = field(repr=False)

    @property
    def nodes(self) -> int:
        """How many tokens the tree adds to a prompt."""
        return len(self.tokens) - 1

    @staticmethod
    def of(classes: Sequence[str], tokenizer: Any) -> ClassTree:
        """The tree of ``classes`` in their order. Raises ``UsageError`` where there are none or two are equal."""
        if not classes or len(set(classes)) < len(classes):
            raise UsageError(
                "the classes must be one or more, and differ", where=", ".join(list(classes)[:5])
            )
        tokens, parents, depths = [-1], [-1], [0]
        children: dict[tuple[int, int], int] = {}
        paths = []
        for name in classes:
            node, path = 0, []
            for token in plain_ids(name, tokenizer):
                path.append((node, token))
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depths[node] + 1)
                node = children[node, token]
            paths.append((*path, (node, tokenizer.eos_token_id)))
        lengths = np.array([len(path) for path in paths])
        return ClassTree(tuple(classes), tuple(tokens), tuple(parents), tuple(depths), tuple(paths), lengths)

    def sees(self) -> torch.Tensor:
        """Which node each node attends to, (nodes, nodes): its ancestors and itself, the prompt's end aside."""
        seen = torch.zeros(self.nodes, self.nodes, dtype=torch.bool)
        for node in range(1, len(self.tokens)):
            if self.parents[node]:
                seen[node - 1] = seen[self.parents[node] - 1]
            seen[node - 1, node - 1] = True
        return seen

    def pieces(self) -> list[ClassTree]:
        """The tree cut into trees of at most :data:`TREE_NODES` nodes or one class each, in order."""
        groups: list[list[int]] = [[]]
        held: set[int] = set()
        for c, path in enumerate(self.paths):
            nodes = {node for node, _ in path if node}
            if groups[-1] and len(held | nodes) > TREE_NODES:
                groups.append([])
                held = set()
            groups[-1].append(c)
            held |= nodes
        return [self._only(group) for group in groups]

    def _only(self, group: Sequence[int]) -> ClassTree:
        if len(group) == len(self.classes):
            return self
        wanted = sorted({node for c in group for node, _ in self.paths[c]} | {0})
        new = {node: i for i, node in enumerate(wanted)}
        return ClassTree(
            classes=tuple(self.classes[c] for c in group),
            tokens=tuple(self.tokens[n] for n in wanted),
            parents=tuple(new[self.parents[n]] if n else -1 for n in wanted),
            depths=tuple(self.depths[n] for n in wanted),
            paths=tuple(tuple((new[n], t) for n, t in self.paths[c]) for c in group),
            lengths=self.lengths[list(group)],
        )


@torch.no_grad()
def class_logprobs(prompts: Prefill, tree: ClassTree) -> np.ndarray:
    """The log-likelihood, in nats, of every class after every prompt: (rows, classes), float64.

    The prompt's cache is used for every piece of the tree and left as it was.
    """
    found = []
    for piece in tree.pieces() if tree.nodes > TREE_NODES else [tree]:
        states = torch.cat([prompts.last[:, None], _tree_states(prompts, piece)], dim=1)
        found.append(_path_sums(prompts.loaded.model, states, piece))
    return np.concatenate(found, axis=1)


def _tree_states(prompts: Prefill, tree: ClassTree) -> torch.Tensor:
    """Hidden states of the tree's tokens after each prompt, (rows, nodes, hidden)."""
    rows, width, device = len(prompts.lengths), prompts.mask.shape[1], prompts.device
    ids = torch.tensor(tree.tokens[1:], device=device).expand(rows, -1)
    depths = torch.tensor(tree.depths[1:], device=device)
    prompt = prompts.mask.bool()[:, None, :].expand(rows, tree.nodes, width)
    sees = torch.cat([prompt, tree.sees().to(device).expand(rows, -1, -1)], dim=2)
    dtype = prompts.states.dtype
    blocked = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
    out = _backbone(prompts.loaded.model)(
        input_ids=ids,
        attention_mask=blocked[:, None],
        position_ids=prompts.lengths[:, None] + depths[None] - 1,
        past_key_values=prompts.cache,
        use_cache=True,
    )
    prompts.cache.crop(-tree.nodes)
    return out.last_hidden_state


def _path_sums(model: Any, states: torch.Tensor, tree: ClassTree) -> np.ndarray:
    """Sum over each class's steps of log p(token | node), from the hidden states of the nodes, (rows, nodes, hidden)."""
    steps = sorted({step for path in tree.paths for step in path})
    following = sorted({token for _, token in steps})
    logits, normalisers = _followed(model, states.flatten(0, 1), following)
    nodes = [node for node, _ in steps]
    tokens = [following.index(token) for _, token in steps]
    by_node = (
        logits.view(*states.shape[:2], -1)[:, nodes, tokens] - normalisers.view(states.shape[:2])[:, nodes]
    )
    table_of = by_node.double().cpu().numpy()
    column = {step: i for i, step in enumerate(steps)}
    return np.stack([table_of[:, [column[s] for s in path]].sum(axis=1) for path in tree.paths], axis=1)


def _followed(
    model: Any, states: torch.Tensor, following: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a few tokens at every position, (positions, tokens), and the log-normaliser of each position.

    The normaliser needs every logit, but no logit needs to be kept: they are made a tile at a time, small enough to
    stay in a core's cache while it is summed. The normaliser of a tile is any logit of it less its log-softmax.
    """
    kept, normalisers = [], []
    for tile in _vocabulary_tiles(model, states.device.type):
        inside = [token - tile.start for token in following if token in tile]
        parts = []
        for some in states.split(max(1, _LOGITS[states.device.type] // len(tile))):
            logits = _logits(model, some, tile)
            parts.append((logits[:, inside], logits[:, 0] - torch.log_softmax(logits, dim=-1)[:, 0]))
        kept.append(torch.cat([chosen for chosen, _ in parts]))
        normalisers.append(torch.cat([normaliser for _, normaliser in parts]))
    return torch.cat(kept, dim=1), torch.logsumexp(torch.stack(normalisers), dim=0)


def _vocabulary_tiles(model: Any, device: str) -> list[range]:
    """The vocabulary in ranges of token ids: whole on a GPU, and under a head that is no plain matrix."""
    head = _causal(model).get_output_embeddings()
    size = len(head.weight)
    step = _TILE if device == "cpu" and _cuttable(head) else size
    return [range(first, min(first + step, size)) for first in range(0, size, step)]


def _cuttable(head: Any) -> bool:
    """Whether a part of the head's matrix gives that part of its logits: what wraps or extends a matrix adds to them."""
    return type(head) is torch.nn.Linear


@torch.no_grad()
def plain_class_logprobs(loaded: Loaded, prompt: list[int], classes: Sequence[str]) -> np.ndarray:
    """The same log-likelihoods one class at a time, without cache or tree: what the fast way is measured against."""
    device = next(loaded.model.parameters()).device
    values = []
    for name in classes:
        answer = [*plain_ids(name, loaded.tokenizer), loaded.tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer], device=device)
        states = _backbone(loaded.model)(input_ids=ids, use_cache=False).last_hidden_state[
            0, len(prompt) - 1 : -1
        ]
        logprobs = log_softmax(loaded.model, states)
        values.append(float(logprobs[torch.arange(len(answer)), ids[0, len(prompt) :]].double().sum()))
    return np.array(values)
