"""ONNX models of the signatures of SCRFD and ArcFace, small and made by hand.

The detector sees white squares: its score is the brightness of a cell of eight pixels, its boxes reach two cells from
there. The recogniser's vector is the mean of sixteen fields of the aligned face.
"""

import onnx
from onnx import parser

LANDMARKS = (-1, -1, 1, -1, 0, 0, -1, 1, 1, 1)  # of the detector below, in strides from the cell
DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[1, 3, H, W] picture) => (
    float[A, 1] s8, float[B, 1] s16, float[C, 1] s32, float[A, 4] b8, float[B, 4] b16, float[C, 4] b32,
    float[A, 10] k8, float[B, 10] k16, float[C, 10] k32)
<int64[1] channels = {1}, int64[2] column = {-1, 1}, float[1] steep = {40}, float[1] middle = {0.9},
 float[1, 1] never = {0.0}, float[1, 4] box = {2, 2, 2, 2},
 float[1, 10] points = {-1, -1, 1, -1, 0, 0, -1, 1, 1, 1}, int64[2] anchors = {1, 2}>
{
    c8 = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (picture)
    c16 = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (picture)
    c32 = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (picture)
    m8 = ReduceMean <axes = [1]> (c8)
    m16 = ReduceMean <axes = [1]> (c16)
    m32 = ReduceMean <axes = [1]> (c32)
    over = Sub (m8, middle)
    steeper = Mul (over, steep)
    bright = Sigmoid (steeper)
    row8 = Reshape (bright, column)
    two8 = Tile (row8, anchors)
    s8 = Reshape (two8, column)
    row16 = Reshape (m16, column)
    two16 = Tile (row16, anchors)
    all16 = Reshape (two16, column)
    s16 = Mul (all16, never)
    row32 = Reshape (m32, column)
    two32 = Tile (row32, anchors)
    all32 = Reshape (two32, column)
    s32 = Mul (all32, never)
    o8 = Mul (s8, never)
    b8 = Add (o8, box)
    b16 = Add (s16, box)
    b32 = Add (s32, box)
    k8 = Add (o8, points)
    k16 = Add (s16, points)
    k32 = Add (s32, points)
}
"""
RECOGNIZER = """
<ir_version: 8, opset_import: ["" : 17]>
recognizer (float[N, 3, 112, 112] face) => (float[N, 48] vector)
{
    fields = AveragePool <kernel_shape = [28, 28], strides = [28, 28]> (face)
    vector = Flatten (fields)
}
"""


def saved(folder, name, text):
    path = folder / f"{name}.onnx"
    onnx.save(parser.parse_model(text), path)
    return str(path)
