"""ONNX files of others: the model zoo's structure with weights in it, and torch's exports."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from helpers import weight_files as files

LIGHT = Path(onnx.__file__).parent / 'backend/test/data/light'


def zoo_model(net, arrays):
  """light_bvlc_alexnet.onnx, which is the zoo's without weights, with weights; logits as output.

  Args:
    net: 'caffe', or 'caffenet', whose norms and pools change places as in the zoo's caffenet.
    arrays: as `files.random_arrays`.
  """
  model = onnx.load(LIGHT / 'light_bvlc_alexnet.onnx')
  graph = model.graph
  nodes = [node for node in graph.node if node.op_type != 'ConstantOfShape']
  if net == 'caffenet':
    for norm, pool in [(nodes[i], nodes[i + 1]) for i in (2, 6)]:
      for field in ('op_type', 'attribute'):
        mine, other = getattr(norm, field), getattr(pool, field)
        if field == 'op_type':
          norm.op_type, pool.op_type = other, mine
        else:
          mine, other = list(mine), list(other)
          for node, given in ((norm, other), (pool, mine)):
            del node.attribute[:]
            node.attribute.extend(given)
  constants = {'OC2_DUMMY_1': np.array([1, -1])}
  for name, (kernel, bias) in zip(files.CAFFE_NAMES, arrays, strict=True):
    constants |= {f'{name}_w_0': kernel, f'{name}_b_0': bias}
  for field, values in (
    (graph.node, nodes),
    (graph.initializer, [numpy_helper.from_array(v, name) for name, v in constants.items()]),
    (graph.input, [graph.input[0]]),
    (graph.output, [helper.make_tensor_value_info('r24', 1, (1, len(arrays[-1][1])))]),
  ):
    values = list(values)
    del field[:]
    field.extend(values)
  return model


def torchvision_alexnet(arrays):
  """torchvision/models/alexnet.py with weights."""
  import torch
  from torch import nn

  class AlexNet(nn.Module):
    def __init__(self):
      super().__init__()

      def conv(layer, *geometry):
        outputs, inputs, kernel, _ = arrays[layer][0].shape
        return nn.Conv2d(inputs, outputs, kernel, *geometry), nn.ReLU(inplace=True)

      def pool():
        return nn.MaxPool2d(kernel_size=3, stride=2)

      def dense(layer):
        return nn.Linear(*arrays[layer][0].shape[::-1])

      first, second, third, fourth, fifth = (
        conv(layer, *geometry)
        for layer, geometry in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)))
      )
      self.features = nn.Sequential(
        *first, pool(), *second, pool(), *third, *fourth, *fifth, pool()
      )
      self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
      self.classifier = nn.Sequential(
        *(nn.Dropout(), dense(5), nn.ReLU(inplace=True)),
        *(nn.Dropout(), dense(6), nn.ReLU(inplace=True), dense(7)),
      )

    def forward(self, x):
      return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

  module = AlexNet().eval()
  module.load_state_dict(files.state_dict(arrays))
  return module
