"""TensorFlow: networks of layers, functions and TensorFlow Lite files, converted by tf2onnx itself at several opsets and layouts."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from exports import matrix
from exports.keras_export import Made, converted, flat, ints, paired, x
from keras import layers as L


def called(model: Any, sets: list[Any]) -> Made:
    """A Keras model as a function of its inputs, in inference."""
    return lambda *args: model(args if len(args) > 1 else args[0], training=False), sets


def block(y: Any, width: int, step: int = 1) -> Any:
    short = L.Conv2D(width, 1, step, use_bias=False)(y)
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, step, padding="same", use_bias=False)(y)))
    return L.ReLU()(L.Add()([short, L.BatchNormalization()(L.Conv2D(width, 3, padding="same", use_bias=False)(y))]))


def residual() -> Made:
    i = keras.Input((None, None, 3))
    return called(keras.Model(i, L.Dense(5, "softmax")(L.GlobalAveragePooling2D()(block(block(i, 8, 2), 16, 2)))), [x(1, 32, 32, 3), x(2, 24, 40, 3)])


@converted(opset=13)
def residual_13() -> Made:
    return residual()


@converted(opset=18)
def residual_18() -> Made:
    return residual()


@converted(opset=17, inputs_as_nchw=["x0"])
def residual_channels_first() -> Made:
    return residual()


@converted(opset=9)
def residual_9() -> Made:
    return residual()


@converted(opset=17)
def depthwise_padded() -> Made:
    i = keras.Input((None, None, 3))
    y = L.ReLU(6.0)(L.DepthwiseConv2D(5, 2, padding="same")(L.Conv2D(8, 3, 2, padding="same")(i)))
    return called(keras.Model(i, L.Conv2D(4, 3, dilation_rate=2, padding="same")(y)), [x(1, 33, 31, 3), x(2, 24, 40, 3)])


@converted(opset=17)
def unet() -> Made:
    i = keras.Input((16, 16, 2))
    a = L.Conv2D(4, 3, padding="same", activation="relu")(i)
    b = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D()(a))
    return called(keras.Model(i, L.Conv2D(1, 1)(L.Concatenate()([a, L.UpSampling2D(interpolation="bilinear")(b), L.Conv2DTranspose(4, 3, 2, padding="same")(b)]))), [x(1, 16, 16, 2), x(2, 16, 16, 2)])


@converted(opset=15)
def recurrent_15() -> Made:
    i = keras.Input((None, 4))
    y = L.Bidirectional(L.LSTM(6, return_sequences=True))(i)
    return called(keras.Model(i, L.Dense(3)(L.GRU(5)(y))), [x(2, 7, 4), x(3, 4, 4)])


@converted(opset=17)
def transformer() -> Made:
    i = keras.Input((None,), dtype="int32")
    y = L.Embedding(30, 16)(i)
    for _ in range(2):
        y = L.LayerNormalization()(y + L.MultiHeadAttention(2, 8)(y, y, use_causal_mask=True))
        y = L.LayerNormalization()(y + L.Dense(16)(L.Dense(32, "silu")(y)))
    return called(keras.Model(i, L.Dense(30)(y)), [ints(30, 2, 6), ints(30, 3, 9)])


@converted(opset=17, broken="the file has TensorFlow's Erfc, which ONNX has not")
def gelu() -> Made:
    return called(keras.Sequential([keras.Input((8,)), L.Dense(16, "gelu"), L.Dense(4)]), [x(2, 8), x(3, 8)])


@converted(opset=17)
def efficient_net() -> Made:
    return called(keras.applications.EfficientNetV2B0(include_preprocessing=False, weights=None, input_shape=(64, 64, 3), classes=5), [x(1, 64, 64, 3), x(2, 64, 64, 3)])


@converted(opset=17)
def conv_next() -> Made:
    return called(keras.applications.ConvNeXtTiny(include_preprocessing=False, weights=None, input_shape=(32, 32, 3), classes=5), [x(1, 32, 32, 3), x(2, 32, 32, 3)])


@converted(opset=17)
def nas_net() -> Made:
    return called(keras.applications.NASNetMobile(weights=None, input_shape=(32, 32, 3), classes=5), [x(1, 32, 32, 3), x(2, 32, 32, 3)])


@converted(opset=17)
def loop_of_rows() -> Made:
    def f(a: Any) -> Any:
        rows = tf.TensorArray(tf.float32, size=tf.shape(a)[0])
        total = tf.zeros_like(a[0])
        for k in tf.range(tf.shape(a)[0]):
            total = total + a[k] * tf.cast(k + 1, tf.float32)
            rows = rows.write(k, total)
        return rows.stack(), total
    return f, [x(5, 3), x(2, 3)]


@converted(opset=18)
def detections() -> Made:
    def f(boxes: Any, scores: Any) -> Any:
        return tuple(tf.image.combined_non_max_suppression(boxes[:, :, None], scores, 5, 8, 0.5, 0.2))
    rng = np.random.default_rng(0)
    corner = rng.random((2, 20, 2)).astype(np.float32)
    return f, [[np.concatenate([corner, corner + 0.3], -1), rng.random((2, 20, 3)).astype(np.float32)]]


@converted(opset=18, broken="the file has TensorFlow's ComplexAbs, which ONNX has not")
def spectrogram() -> Made:
    return lambda a: tf.math.log(tf.abs(tf.signal.stft(a, 16, 8, 16)) + 1e-3), [x(2, 64), x(3, 64)]


@converted(opset=18)
def words() -> Made:
    return lambda s: (tf.strings.lower(s), tf.strings.upper(s)), [np.array(["One", "two", "Three"], object)]


def lite(make: Callable[[], Made]) -> Callable[[], Made]:
    """Declare a network that goes through TensorFlow Lite, quantised to bytes; its interpreter gives the answer."""
    def build() -> matrix.Export:
        tf.random.set_seed(1)
        call, sets = make()
        taken = tf.function(call, input_signature=[tf.TensorSpec(sets[0].shape, tf.float32, name="x0")])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([taken.get_concrete_function()])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([s] for s in sets)
        try:
            content = converter.convert()
            proto = from_lite(content)
        except Exception as refusal:
            raise matrix.NotExported(matrix.reason(refusal)) from refusal
        reader = tf.lite.Interpreter(model_content=content)
        outputs = []
        for s in sets:
            reader.allocate_tensors()
            reader.set_tensor(reader.get_input_details()[0]["index"], s)
            reader.invoke()
            outputs.append([reader.get_tensor(d["index"]) for d in reader.get_output_details()])
        made = paired(proto.SerializeToString(), [[s] for s in sets], [flat(o) for o in outputs])
        made.rtol, made.atol = 2e-2, 2e-2
        return made
    matrix.add(make.__module__, matrix.Case("tf2onnx, of TensorFlow Lite", make.__name__, build))
    return make


def from_lite(content: bytes) -> Any:
    import tf2onnx
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(content)
        file.flush()
        return tf2onnx.convert.from_tflite(file.name, opset=17)[0]


@lite
def lite_convolutions() -> Made:
    i = keras.Input((16, 16, 3))
    y = L.DepthwiseConv2D(3, padding="same")(L.Conv2D(8, 3, 2, padding="same", activation="relu")(i))
    return called(keras.Model(i, L.Dense(4, "softmax")(L.GlobalAveragePooling2D()(y))), [x(1, 16, 16, 3), x(1, 16, 16, 3) * 0.5])


@lite
def lite_dense() -> Made:
    i = keras.Input((8,))
    return called(keras.Model(i, L.Dense(4, "sigmoid")(L.Dense(16, "relu")(i))), [x(1, 8), x(1, 8) * 0.3])


@lite
def lite_residual() -> Made:
    i = keras.Input((16, 16, 3))
    return called(keras.Model(i, L.Dense(5)(L.GlobalAveragePooling2D()(block(block(i, 8, 2), 16, 2)))), [x(1, 16, 16, 3), x(1, 16, 16, 3) * 0.5])
