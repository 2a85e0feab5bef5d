'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// One photo at a time; browsers keep a choice when a page is loaded again. Links lead to its layers.
for (const radio of all('input[name=photo]')) {
  const show = () => {
    if (!radio.checked) return;
    for (const part of all('.of-photo')) part.hidden = part.dataset.photo !== radio.value;
    for (const at of all('.layer')) at.id = at.closest('[hidden]') ? '' : at.dataset.layer;
  };
  radio.addEventListener('change', show);
  show();
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
      if (chosen) frame.closest('.square').scrollIntoView({ block: 'nearest' });
    });
  }
}

// Occlusion: the gray square goes where one points, touches, or moves it by arrow keys.
const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
for (const part of all('#occlusion .of-photo')) {
  const cells = all('.cell', part);
  const side = Math.sqrt(cells.length);
  const cover = part.querySelector('.cover');
  const picture = part.querySelector('.square');
  const output = part.querySelector('output');
  let kept; // the number of a cell, where one was clicked or the keys went
  const show = (number) => {
    const { square = '0 0 0 0', share = '0%', points, then = '' } = cells[number]?.dataset ?? {};
    const numbers = square.split(' ');
    ['x', 'y', 'width', 'height'].forEach((name, i) => cover.setAttribute(name, numbers[i]));
    cover.toggleAttribute('hidden', !points);
    output.style.setProperty('--share', share);
    output.querySelector('i').textContent = then;
    output.querySelector('b').textContent = points ? `${share}, ${points} points` : '–';
  };
  cells.forEach((cell, number) => {
    cell.addEventListener('pointerenter', () => show(number));
    cell.addEventListener('click', () => show((kept = kept === number ? undefined : number)));
  });
  picture.addEventListener('pointerleave', () => show(kept));
  picture.addEventListener('keydown', (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    const inside = (place) => Math.min(Math.max(place, 0), side - 1);
    const [right, down] = kept === undefined ? [0, 0] : moves[event.key];
    kept ??= (cells.length - 1) / 2; // the middle
    kept = inside(Math.floor(kept / side) + down) * side + inside((kept % side) + right);
    show(kept);
  });
}

// A layer of the picture: its maps, unfolded.
for (const link of all('.net a')) {
  link.addEventListener('click', () => {
    document.querySelector(link.getAttribute('href')).open = true;
  });
}

// A step: which, and how much of it.
for (const select of all('#steps select')) {
  const show = () => {
    for (const step of all('.step')) step.hidden = step.dataset.step !== select.value;
  };
  select.addEventListener('change', show);
  show(); // browsers keep a choice when a page is loaded again
}
for (const slider of all('.slider')) {
  const cut = () => slider.previousElementSibling.style.setProperty('--cut', `${slider.value}%`);
  slider.addEventListener('input', cut);
  cut();
}
