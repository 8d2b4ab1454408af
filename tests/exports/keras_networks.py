"""Keras and TensorFlow: small networks of every kind."""
from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from exports.keras_export import Made, converted, ints, network, unrunnable, x
from keras import layers as L


def chain(shape: tuple[Any, ...], *body: Any, dtype: str = "float32") -> Any:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *body])


@network
def dense() -> Made:
    return chain((8,), L.Dense(16, "relu"), L.BatchNormalization(), L.Dropout(0.3), L.Dense(4, "softmax")), [x(3, 8), x(7, 8)]


@network
def activations() -> Made:
    i = keras.Input((6,))
    kinds = ("elu", "selu", "swish", "softplus", "softsign", "hard_sigmoid", "exponential", "mish", "tanh", "relu6", "leaky_relu", "log_softmax", "hard_silu", "glu", "tanh_shrink", "squareplus")
    return keras.Model(i, [L.Activation(k)(i) for k in kinds]), [x(3, 6), x(5, 6)]


@network
def convolutions() -> Made:
    return chain((28, 28, 1), L.Conv2D(8, 3, padding="same", activation="relu"), L.MaxPooling2D(), L.Conv2D(16, 3, 2), L.GlobalAveragePooling2D(), L.Dense(10)), [x(2, 28, 28, 1), x(5, 28, 28, 1)]


@network
def convolutions_any_size() -> Made:
    return chain((None, None, 3), L.Conv2D(8, 3, 2, padding="same"), L.BatchNormalization(), L.ReLU(), L.Conv2D(4, 1), L.GlobalMaxPooling2D()), [x(2, 28, 28, 3), x(1, 17, 40, 3)]


@network
def separable() -> Made:
    return chain((16, 16, 3), L.SeparableConv2D(8, 3, padding="same"), L.DepthwiseConv2D(3, 2), L.ReLU(6.0), L.AveragePooling2D(2, padding="same"), L.Flatten(), L.Dense(3)), [x(2, 16, 16, 3), x(1, 16, 16, 3)]


@network
def residual() -> Made:
    i = keras.Input((16, 16, 4))
    y = L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(i))))
    return keras.Model(i, L.GlobalAveragePooling2D()(L.ReLU()(L.Add()([i, y])))), [x(2, 16, 16, 4), x(3, 16, 16, 4)]


@network
def squeeze_and_excite() -> Made:
    i = keras.Input((8, 8, 8))
    s = L.Dense(8, "sigmoid")(L.Dense(2, "swish")(L.GlobalAveragePooling2D(keepdims=True)(i)))
    return keras.Model(i, L.Multiply()([i, s])), [x(2, 8, 8, 8)]


@network
def transposed_unet() -> Made:
    i = keras.Input((16, 16, 2))
    a = L.Conv2D(4, 3, padding="same", activation="relu")(i)
    b = L.Conv2D(8, 3, 2, padding="same", activation="relu")(a)
    return keras.Model(i, L.Conv2D(1, 1, activation="sigmoid")(L.Concatenate()([a, L.Conv2DTranspose(4, 3, 2, padding="same")(b)]))), [x(2, 16, 16, 2), x(1, 16, 16, 2)]


@network
def upsampled() -> Made:
    return chain((6, 8, 2), L.UpSampling2D(2, interpolation="bilinear"), L.Conv2D(2, 3), L.UpSampling2D(3), L.Cropping2D(1), L.ZeroPadding2D(2)), [x(2, 6, 8, 2)]


@network
def inception() -> Made:
    i = keras.Input((12, 12, 4))
    parts = [L.Conv2D(3, 1)(i), L.Conv2D(3, 3, padding="same")(i), L.Conv2D(3, 5, padding="same", dilation_rate=2)(i), L.MaxPooling2D(3, 1, padding="same")(i)]
    return keras.Model(i, L.Concatenate()(parts)), [x(2, 12, 12, 4)]


@network
def convolution_1d() -> Made:
    return chain((None, 4), L.Conv1D(8, 3, padding="causal", activation="relu"), L.MaxPooling1D(2), L.Conv1D(8, 3, dilation_rate=2, padding="same"), L.GlobalAveragePooling1D()), [x(2, 20, 4), x(3, 11, 4)]


@network
def convolution_3d() -> Made:
    return chain((8, 8, 8, 1), L.Conv3D(4, 3, padding="same"), L.MaxPooling3D(2), L.Conv3D(4, 2), L.GlobalAveragePooling3D()), [x(1, 8, 8, 8, 1), x(2, 8, 8, 8, 1)]


@network
def norms() -> Made:
    i = keras.Input((6, 8))
    return keras.Model(i, [L.LayerNormalization()(i), L.GroupNormalization(4)(i), L.UnitNormalization()(i), L.BatchNormalization()(i), L.RMSNormalization()(i)]), [x(2, 6, 8), x(5, 6, 8)]


@network
def lstm() -> Made:
    return chain((None, 4), L.LSTM(6, return_sequences=True), L.LSTM(5)), [x(2, 7, 4), x(3, 4, 4)]


@network
def gru() -> Made:
    return chain((None, 4), L.GRU(6, return_sequences=True), L.GRU(5, reset_after=False)), [x(2, 7, 4), x(3, 4, 4)]


@network
def bidirectional() -> Made:
    return chain((None, 4), L.Bidirectional(L.LSTM(6, return_sequences=True)), L.Bidirectional(L.GRU(3)), L.Dense(2)), [x(2, 7, 4), x(3, 4, 4)]


@network
def simple_rnn() -> Made:
    return chain((5, 4), L.SimpleRNN(6, return_sequences=True), L.TimeDistributed(L.Dense(3))), [x(2, 5, 4), x(3, 5, 4)]


@network
def lstm_unrolled_states() -> Made:
    i = keras.Input((4, 3))
    return keras.Model(i, L.LSTM(5, return_state=True, unroll=True)(i)), [x(2, 4, 3), x(3, 4, 3)]


@network
def convolutional_lstm() -> Made:
    return chain((3, 8, 8, 2), L.ConvLSTM2D(4, 3, padding="same")), [x(2, 3, 8, 8, 2)]


@network
def embedding() -> Made:
    return chain((None,), L.Embedding(20, 8), L.GlobalAveragePooling1D(), L.Dense(3)), [ints(20, 2, 6), ints(20, 4, 9)]


@network
def masked_sentences() -> Made:
    return chain((6,), L.Embedding(20, 8, mask_zero=True), L.LSTM(5), L.Dense(2, "softmax")), [ints(20, 2, 6), ints(20, 4, 6)]


@network
def attention() -> Made:
    q, v = keras.Input((None, 8)), keras.Input((None, 8))
    return keras.Model([q, v], [L.Attention()([q, v]), L.MultiHeadAttention(2, 4)(q, v), L.AdditiveAttention()([q, v])]), [[x(2, 5, 8), x(2, 6, 8)], [x(3, 3, 8), x(3, 4, 8)]]


@network
def transformer() -> Made:
    i = keras.Input((None,), dtype="int32")
    y = L.Embedding(30, 16)(i)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(2, 8)(y, y, use_causal_mask=True))
    y = L.LayerNormalization()(y + L.Dense(16)(L.Dense(32, "silu")(y)))
    return keras.Model(i, L.Dense(30)(y)), [ints(30, 2, 6), ints(30, 3, 9)]


@network
def grouped_query_attention() -> Made:
    i = keras.Input((5, 8))
    return keras.Model(i, L.GroupQueryAttention(4, 4, 2)(i, i)), [x(2, 5, 8)]


@network
def shapes() -> Made:
    i = keras.Input((6, 4))
    return keras.Model(i, [L.Reshape((4, 6))(i), L.Permute((2, 1))(i), L.Flatten()(i), L.RepeatVector(3)(L.Flatten()(i)), L.Lambda(lambda z: z[:, ::2])(i), L.Cropping1D(1)(i)]), [x(2, 6, 4), x(3, 6, 4)]


@network
def merges() -> Made:
    a, b = keras.Input((4, 5)), keras.Input((4, 5))
    return keras.Model([a, b], [L.Add()([a, b]), L.Subtract()([a, b]), L.Multiply()([a, b]), L.Average()([a, b]), L.Maximum()([a, b]), L.Minimum()([a, b]), L.Dot(2)([a, b]), L.Concatenate(1)([a, b])]), [
        [x(2, 4, 5), x(2, 4, 5)], [x(3, 4, 5), x(3, 4, 5)]]


@network
def preprocessing() -> Made:
    scale = L.Normalization(mean=1.0, variance=2.0)
    i = keras.Input((8, 8, 3))
    return keras.Model(i, [scale(i), L.Rescaling(1 / 255, 0.5)(i), L.CenterCrop(4, 4)(i)]), [x(2, 8, 8, 3)]


@network
def operations() -> Made:
    i = keras.Input((5, 4))
    o = keras.ops
    return keras.Model(i, [o.cumsum(i, 1), o.sort(i, 1), o.top_k(i, 2)[0], o.einsum("bij,bkj->bik", i, i), o.where(i > 0, i, 0.0), o.logsumexp(i, 1), o.one_hot(o.cast(o.abs(i[..., 0]) * 2, "int32"), 4),
                           o.take(i, [0, 2], 1), o.pad(i, [[0, 0], [1, 1], [0, 2]]), o.norm(i, axis=1), o.var(i, 1)]), [x(2, 5, 4), x(3, 5, 4)]


@unrunnable("the file has TensorFlow's Bitcast, which ONNX has not")
def operation_argmax() -> Made:
    i = keras.Input((5, 4))
    return keras.Model(i, keras.ops.argmax(i, -1)), [x(2, 5, 4)]


@unrunnable("the file has TensorFlow's Erfc, which ONNX has not")
def gelu() -> Made:
    return chain((8,), L.Dense(4, "gelu")), [x(2, 8)]


@converted(opset=18, broken="the file has TensorFlow's Log1p, which ONNX has not")
def tf_log1p() -> Made:
    return tf.math.log1p, [np.abs(x(2, 8))]


@network
def mobilenet_v2() -> Made:
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5), [x(1, 32, 32, 3), x(2, 32, 32, 3)]


@network
def densenet() -> Made:
    i = keras.Input((16, 16, 3))
    a = L.Conv2D(8, 3, padding="same")(i)
    b = L.Concatenate()([a, L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(a)))])
    return keras.Model(i, L.Dense(5)(L.GlobalAveragePooling2D()(L.AveragePooling2D(2)(b)))), [x(1, 16, 16, 3), x(2, 16, 16, 3)]


@network
def half_precision() -> Made:
    return chain((8,), L.Dense(16, "relu", dtype="float16"), L.Dense(4, dtype="float32")), [x(3, 8)]


@network
def double_precision() -> Made:
    i = keras.Input((8,), dtype="float64")
    return keras.Model(i, L.Dense(4, "tanh", dtype="float64")(i)), [x(3, 8).astype(np.float64), x(5, 8).astype(np.float64)]


@converted(opset=18)
def tf_math() -> Made:
    def f(a: Any, b: Any) -> Any:
        return (tf.math.floormod(a, b), tf.math.squared_difference(a, b), tf.math.erf(a), tf.math.rsqrt(tf.abs(b) + 1), tf.reduce_logsumexp(a, 1), tf.math.atan2(a, b), tf.clip_by_value(a, -1, 1),
                tf.math.cumsum(a, 1, exclusive=True, reverse=True), tf.reduce_prod(b, 0), tf.nn.l2_normalize(a, 1), tf.math.softplus(a), tf.round(a * 3), tf.sign(b))
    return f, [[x(3, 4), x(3, 4)], [x(5, 2), x(5, 2)]]


@converted(opset=18)
def tf_indexing() -> Made:
    def f(a: Any, i: Any) -> Any:
        return (tf.gather(a, i), tf.gather(a, i, axis=1), tf.gather_nd(a, tf.stack([i, i], 1)), tf.scatter_nd(i[:, None], tf.gather(a, i), (4, 4)), tf.tensor_scatter_nd_update(a, i[:, None], tf.gather(a, i) * 2), a[1:, ::2],
                a[..., tf.newaxis], tf.reverse(a, [1]), tf.tile(a, [2, 1]), tf.strided_slice(a, [0, 3], [4, 0], [1, -1]), tf.boolean_mask(a, a[:, 0] > 0), tf.where(a > 0.5))
    return f, [[x(4, 4), np.array([0, 3, 1], np.int32)], [x(4, 4), np.array([2, 1], np.int32)]]


@converted(opset=18, broken="the file reshapes to a size of -4 where the batch is free")
def tf_patches() -> Made:
    return lambda a: tf.image.extract_patches(a, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID"), [x(1, 8, 6, 4), x(2, 8, 6, 4)]


@converted(opset=18, differs="TensorFlow takes the weights of a cubic from a table of 1024 steps, the file says the formula")
def tf_images() -> Made:
    def f(a: Any) -> Any:
        return (tf.image.resize(a, (5, 7)), tf.image.resize(a, (12, 9), "nearest"), tf.image.resize(a, (5, 7), "bicubic"), tf.nn.space_to_depth(a, 2), tf.nn.depth_to_space(tf.concat([a] * 4, -1), 2), tf.image.flip_left_right(a),
                tf.nn.avg_pool2d(a, 3, 2, "SAME"), tf.nn.local_response_normalization(a), tf.pad(a, [[0, 0], [1, 1], [2, 0], [0, 0]], "REFLECT"))
    return f, [x(1, 8, 6, 4), x(2, 8, 6, 4)]


@converted(opset=18)
def tf_loop() -> Made:
    def f(a: Any, n: Any) -> Any:
        return tf.while_loop(lambda k, s: k < n, lambda k, s: (k + 1, s * 0.5 + tf.cast(k, tf.float32)), (tf.constant(0), a))[1]
    return f, [[x(3, 4), np.array(4, np.int32)], [x(3, 4), np.array(0, np.int32)], [x(3, 4), np.array(7, np.int32)]]


@converted(opset=18)
def tf_branch() -> Made:
    def f(a: Any) -> Any:
        return tf.cond(tf.reduce_sum(a) > 0, lambda: a * 2, lambda: tf.cond(tf.reduce_max(a) > 0, lambda: -a, lambda: a - 1))
    return f, [np.abs(x(3, 4)), -np.abs(x(3, 4)), x(3, 4) - 1]


@converted(opset=18)
def tf_detection() -> Made:
    def f(boxes: Any, scores: Any) -> Any:
        kept = tf.image.non_max_suppression(boxes, scores, 5, 0.4, 0.1)
        best, at = tf.math.top_k(scores, 3)
        return tf.gather(boxes, kept), tf.gather(scores, kept), best, at
    rng = np.random.default_rng(0)
    corner = rng.random((2, 20, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + 0.3], -1)
    return f, [[boxes[0], rng.random(20).astype(np.float32)], [boxes[1, :9], rng.random(9).astype(np.float32)]]


@converted(opset=18)
def tf_segments() -> Made:
    def f(a: Any, ids: Any) -> Any:
        return tf.math.segment_sum(a, ids), tf.math.unsorted_segment_max(a, ids, 3), tf.math.unsorted_segment_sum(a, ids, 3), tf.one_hot(ids, 4), tf.unique(ids)[0], tf.sequence_mask(ids + 1, 5)
    return f, [[x(5, 2), np.array([0, 0, 1, 2, 2], np.int32)], [x(3, 2), np.array([0, 1, 2], np.int32)]]


@converted(opset=18)
def tf_signal() -> Made:
    return lambda a: (tf.abs(tf.signal.rfft(a)), tf.signal.frame(a, 4, 2)), [x(2, 16), x(3, 16)]


@converted(opset=18)
def tf_linear_algebra() -> Made:
    return lambda a, b: (tf.matmul(a, b, transpose_b=True), tf.linalg.band_part(a, 1, 0), tf.einsum("bij,bkj->bik", a, b), tf.linalg.diag_part(a @ tf.transpose(a, [0, 2, 1])), tf.tensordot(a, b, [[2], [2]])), [
        [x(2, 3, 4), x(2, 5, 4)], [x(1, 3, 4), x(1, 2, 4)]]
