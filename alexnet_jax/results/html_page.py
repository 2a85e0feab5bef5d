"""Self-contained HTML pages: a common template and style, images as data URIs."""

import base64
from typing import Any

import jinja2

_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader('alexnet_jax', '.'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
  """Renders a template that extends results/page.html.j2; texts are escaped.

  Args:
    template: its path in the package.
    values: its variables.
  """
  return _ENVIRONMENT.get_template(template).render(values)


def data_uri(content: bytes, kind: str = 'png') -> str:
  """The bytes of an image as a data URI; `kind` is 'png' or 'jpeg'."""
  return f'data:image/{kind};base64,' + base64.b64encode(content).decode('ascii')
