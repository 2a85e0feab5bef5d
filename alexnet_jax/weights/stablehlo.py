"""The net as a StableHLO program, which JAX runs without this package.

`jax.export.deserialize(data).call(views)` maps float32 views (b, crop, crop, 3) of 0-255 RGB, for
any b, to float32 logits (b, classes).  Mean and scale are inside; how an image becomes a
view is not.  `jax.export` promises to read such a file for six months at least.
"""

import jax
import jax.numpy as jnp
from jax import export

from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.pretrained import Pretrained


def write(pretrained: Pretrained) -> bytes:
  preprocessing = pretrained.preprocessing
  model = AlexNet(pretrained.table)

  def logits(views):
    return model.apply(pretrained.variables, (views - preprocessing.mean) * preprocessing.scale)

  shape = (*export.symbolic_shape('b'), preprocessing.crop, preprocessing.crop, 3)
  exported = export.export(jax.jit(logits), platforms=('cpu', 'cuda', 'tpu'))(
    jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  return bytes(exported.serialize())
