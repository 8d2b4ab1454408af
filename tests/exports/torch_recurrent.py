"""PyTorch: recurrent networks."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn


def recurrent(kind: Any, *states: int, **options: Any) -> Made:
    """A layer of 4 inputs and 6 hidden units on [N,T,4] with the states given."""
    layer = kind(4, 6, batch_first=True, **options)
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)

    def f(layer: nn.Module, x: torch.Tensor, *state: torch.Tensor) -> Any:
        return layer(x, state if len(state) == 2 else state[0]) if state else layer(x)
    return Fn(f, layer), [(t(2, 5, 4), *(t(rows, 2, s) for s in states)), (t(3, 8, 4), *(t(rows, 3, s) for s in states)), (t(1, 1, 4), *(t(rows, 1, s) for s in states))]


@network()
def lstm() -> Made:
    return recurrent(nn.LSTM)


@network()
def lstm_states() -> Made:
    return recurrent(nn.LSTM, 6, 6)


@network()
def lstm_bidirectional() -> Made:
    return recurrent(nn.LSTM, bidirectional=True)


@network()
def lstm_layers() -> Made:
    return recurrent(nn.LSTM, 6, 6, num_layers=3)


@network()
def lstm_bidirectional_layers() -> Made:
    return recurrent(nn.LSTM, 6, 6, num_layers=2, bidirectional=True)


@network(broken={"dynamo": "its LSTM has hidden states of 3 and cell states of 6"})
def lstm_projected() -> Made:
    return recurrent(nn.LSTM, proj_size=3)


@network()
def gru() -> Made:
    return recurrent(nn.GRU)


@network()
def gru_states() -> Made:
    return recurrent(nn.GRU, 6)


@network()
def gru_bidirectional_layers() -> Made:
    return recurrent(nn.GRU, 6, num_layers=2, bidirectional=True)


@network(one_size=("dynamo",))
def rnn_tanh() -> Made:
    return recurrent(nn.RNN, 6)


@network(one_size=("dynamo",))
def rnn_relu_bidirectional() -> Made:
    return recurrent(nn.RNN, nonlinearity="relu", bidirectional=True)


@network(one_size=("dynamo",))
def lstm_time_first() -> Made:
    return Fn(lambda f, x: f(x)[0], nn.LSTM(4, 6, bias=False)), [t(5, 2, 4), t(3, 4, 4)]


@network()
def lstm_static() -> Made:
    return Fn(lambda f, x: f(x)[0], nn.LSTM(4, 6, 2, batch_first=True)), [t(2, 5, 4)]


def packed(kind: Any, **options: Any) -> Made:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(11, 4), kind(4, 6, batch_first=True, **options)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            sequence = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=True)
            y, state = self.layer(sequence)
            y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
            return y, state
    return Packed(), [(ints(11, 3, 5), torch.tensor([5, 3, 2])), (ints(11, 2, 7), torch.tensor([7, 4]))]


@network(exporters=("torchscript",))
def lstm_lengths() -> Made:
    return packed(nn.LSTM, bidirectional=True)


@network(exporters=("torchscript",))
def gru_lengths() -> Made:
    return packed(nn.GRU)


@network(exporters=("torchscript",))
def rnn_lengths() -> Made:
    return packed(nn.RNN, num_layers=2)


@network()
def cells_unrolled() -> Made:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.LSTMCell(4, 6), nn.GRUCell(6, 5), nn.RNNCell(5, 3)

        def forward(self, x: torch.Tensor) -> Any:
            h, c, g, r = (torch.zeros(x.shape[0], k) for k in (6, 6, 5, 3))
            for step in range(4):
                h, c = self.a(x[:, step], (h, c))
                g = self.b(h, g)
                r = self.c(g, r)
            return r, c
    return Cells(), [t(2, 4, 4), t(5, 4, 4)]


@network()
def tagger() -> Made:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, bidirectional=True, batch_first=True), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.layer(self.embed(x))[0]).log_softmax(-1)
    return Tagger(), [ints(20, 2, 6), ints(20, 4, 3)]


@network()
def seq2seq_attention() -> Made:
    class Seq2Seq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encode, self.decode, self.out = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True), nn.Linear(16, 20)

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> Any:
            memory, state = self.encode(self.embed(source))
            y, _ = self.decode(self.embed(target), state)
            weights = (y @ memory.transpose(-2, -1)).softmax(-1)
            return self.out(torch.cat([y, weights @ memory], -1))
    return Seq2Seq(), [(ints(20, 2, 6), ints(20, 2, 4)), (ints(20, 3, 5), ints(20, 3, 7))]


@network()
def crnn() -> Made:
    class Crnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d((2, 1)))
            self.layer, self.head = nn.LSTM(16, 8, bidirectional=True), nn.Linear(16, 11)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.body(x).flatten(1, 2).permute(2, 0, 1)
            return self.head(self.layer(y)[0])
    return Crnn(), [t(1, 1, 8, 20), t(2, 1, 8, 32)]


@network()
def conv_lstm_step() -> Made:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3 + 4, 16, 3, padding=1)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
            i, f, o, g = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
    return Step(), [(t(1, 3, 6, 6), t(1, 4, 6, 6), t(1, 4, 6, 6)), (t(2, 3, 5, 8), t(2, 4, 5, 8), t(2, 4, 5, 8))]
