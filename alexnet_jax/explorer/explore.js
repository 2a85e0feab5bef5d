'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// One photo at a time.
for (const radio of all('input[name=photo]')) {
  radio.addEventListener('change', () => {
    for (const part of all('.of-photo')) part.hidden = part.dataset.photo !== radio.value;
  });
}

// A view: its frame on the photo.
for (const part of all('#guess .of-photo')) {
  const frame = part.querySelector('.frame');
  const buttons = all('.views button', part);
  for (const button of buttons) {
    button.addEventListener('click', () => {
      const chosen = button.getAttribute('aria-pressed') !== 'true';
      for (const other of buttons) other.setAttribute('aria-pressed', other === button && chosen);
      frame.toggleAttribute('hidden', !chosen);
      frame.setAttribute('x', button.dataset.x);
      frame.setAttribute('y', button.dataset.y);
    });
  }
}
