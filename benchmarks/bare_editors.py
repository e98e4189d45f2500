"""The work of the editors' own networks: the matrix products of MEND and KE on random values of the
same shapes, and SERAC's small modules, called as torch and transformers have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from bare import Rows
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit import Example
from mmedit.editors.learned import LearnedEditor
from mmedit.methods.serac.counterfactual import SEPARATOR
from mmedit.vlm.network import NetworkVLM


class OwnNetwork:
    """Work of an editor's own network: `forward`, and `train`: backward and a step of Adam too."""

    parameters: list[Tensor]

    def loss(self) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def forward(self) -> None:
        self.loss()

    def train(self) -> None:
        if not hasattr(self, "_optimizer"):
            self._optimizer = torch.optim.Adam(self.parameters, lr=1e-9)
        self._optimizer.zero_grad()
        with torch.enable_grad():
            self.loss().backward()
        self._optimizer.step()


class MendNetwork(OwnNetwork):
    """MEND's g on every token that the loss reaches, at every site."""

    def __init__(self, editor: LearnedEditor, vlm: NetworkVLM, requests: Rows) -> None:
        shapes: dict[str, tuple[int, int]] = editor.facts(vlm)["shapes"]
        config: Any = editor.config
        self.layers: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.parameters, self.inputs = [], []
        last = len(requests.model.layers) - 1
        before = sum(length - 1 for length in requests.lengths)
        for site, (out, in_) in shapes.items():
            width, device = out + in_, vlm.device
            tokens = requests.scored if requests.model.layer_of(site) == last else before
            self.inputs.append((hash((in_, out)), torch.randn(tokens, width, device=device)))
            if hash((in_, out)) not in self.layers:
                mid = min(config.rank, width)
                pairs = [
                    (self._made(width, mid, device), self._made(mid, width, device))
                    for _ in range(config.hidden_layers + 1)
                ]
                self.layers[hash((in_, out))] = pairs

    def _made(self, rows: int, columns: int, device: torch.device) -> Tensor:
        made = (torch.randn(rows, columns, device=device) / columns).requires_grad_()
        self.parameters.append(made)
        return made

    def loss(self) -> Tensor:
        total = torch.zeros(())
        for shape, x in self.inputs:
            for u, v in self.layers[shape]:
                x = x + F.relu(x @ v.T @ u.T)
            total = total.to(x.device) + x.sum()
        return total


class KENetwork(OwnNetwork):
    """KE's BiLSTM on the text of every edit, and its gates."""

    def __init__(self, editor: LearnedEditor, vlm: NetworkVLM, requests: Sequence[Example]) -> None:
        facts, config = editor.facts(vlm), editor.config
        texts = [f"{e.target} >> {e.target} || {e.prompt}" for e in requests]
        longest = max(map(len, vlm.frozen.tokenize(texts)))
        tokens = min(config.max_condition_tokens, longest)
        self.read = torch.randn(len(requests), tokens, facts["width"], device=vlm.device)
        self.lstm = nn.LSTM(
            facts["width"], config.lstm_hidden, bidirectional=True, batch_first=True
        )
        condition = nn.Linear(2 * config.lstm_hidden, config.condition)
        gates = [
            nn.Sequential(
                nn.Linear(config.condition, config.hidden),
                nn.Tanh(),
                nn.Linear(config.hidden, 2 * (out + in_) + 1),
            )
            for out, in_ in facts["shapes"].values()
        ]
        self.rest = nn.ModuleList([condition, *gates]).to(vlm.device)
        self.lstm.to(vlm.device)
        self.parameters = [*self.lstm.parameters(), *self.rest.parameters()]

    def loss(self) -> Tensor:
        _, (final, _) = self.lstm(self.read)
        condition, *gates = self.rest
        read = condition(torch.cat([final[0], final[1]], dim=-1)).tanh()
        return torch.stack([gate(read).sum() for gate in gates]).sum()


class SeracScope(OwnNetwork):
    """The two heads of SERAC's multimodal scope, on ready embeddings of questions."""

    def __init__(self, network: Any, vlm: NetworkVLM, questions: Sequence[Example]) -> None:
        width, device = vlm.frozen.hidden, vlm.device
        self.heads = deepcopy(nn.ModuleList([network.scope.image, network.scope.text]))
        self.heads.to(device).requires_grad_()
        seen = sum(question.image is not None for question in questions)
        self.inputs = [torch.randn(count, width, device=device) for count in (seen, len(questions))]
        self.parameters = list(self.heads.parameters())

    def loss(self) -> Tensor:
        made = [head(x).sum() for head, x in zip(self.heads, self.inputs, strict=True)]
        return torch.stack(made).sum()


class SeracAnswers(OwnNetwork):
    """SERAC's counterfactual model on image, edit and question, in batches of about one length."""

    def __init__(
        self,
        network: Any,
        vlm: NetworkVLM,
        asked: Sequence[tuple[Example, Example, bool]],
        *,
        size: int,
    ) -> None:
        """`asked` are an edit, a question, and whether the logits of its whole text are needed."""
        self.model = deepcopy(network.counterfactual.lm).to(vlm.device).requires_grad_()
        self.projection = deepcopy(network.counterfactual.projection).to(vlm.device)
        self.projection.requires_grad_()
        self.parameters = [*self.model.parameters(), *self.projection.parameters()]
        shapes = sorted(self._shape(vlm, *one) for one in asked)
        self.images = torch.randn(
            sum(images for _, images, _ in shapes), vlm.frozen.hidden, device=vlm.device
        )
        self.groups = [
            self._group([(total, scored) for total, _, scored in shapes[at : at + size]])
            for at in range(0, len(shapes), size)
        ]

    def _shape(
        self, vlm: NetworkVLM, edit: Example, question: Example, all_text: bool
    ) -> tuple[int, int, int]:
        """Return the numbers of all tokens, of image tokens, and of scored ones."""
        told, asked = vlm.frozen.segments([edit, question])
        [features] = vlm.frozen.image_features([question])
        images = 0 if features is None else len(features)
        [separator] = vlm.frozen.tokenize([SEPARATOR])
        text = len(asked.prompt) + len(asked.answer)
        total = images + len(told.prompt) + len(told.answer) + len(separator) + text
        return total, images, text if all_text else len(asked.answer)

    def _group(self, rows: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(total for total, _ in rows)
        embedding, device = self.model.get_input_embeddings(), self.images.device
        embeds = torch.randn(len(rows), longest, embedding.embedding_dim, device=device)
        place = torch.arange(longest, device=device)
        total, needed = torch.tensor(rows, device=device).T.unsqueeze(-1)
        mask = (place < total).long()
        return embeds, mask, (place < total - 1) & (place >= total - 1 - needed)

    def loss(self) -> Tensor:
        total = self.projection(self.images).sum()
        for embeds, mask, scored in self.groups:
            states = self.model.get_decoder()(
                inputs_embeds=embeds, attention_mask=mask, use_cache=False
            ).last_hidden_state
            logits = self.model.get_output_embeddings()(states[scored])
            total = total + logits.float().logsumexp(-1).sum()
        return total
