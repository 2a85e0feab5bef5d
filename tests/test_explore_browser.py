"""The page of `explore` in headless Chromium, every control used; without Chromium these skip."""

import shutil

import pytest
from helpers.explored import NASTY, nasty_net, page, write_photos
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

DRIVER, BROWSER = shutil.which('chromedriver'), shutil.which('chromium')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not (DRIVER and BROWSER), reason='no chromium and chromedriver: .ci/install_chromium has them'
  ),
]
NARROW, WIDE = 390, 1400  # pixels: a phone, touched; a screen, pointed at
OF_PHOTO = '#guess', '#occlusion', '#layers', '#steps', '#neighbors'


@pytest.fixture(scope='module')
def driver():
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
  yield driver
  driver.quit()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """The page of two photos."""
  folder = tmp_path_factory.mktemp('page')
  (folder / 'page.html').write_text(page(nasty_net(), write_photos(folder)), encoding='utf-8')
  return folder / 'page.html'


@pytest.fixture(params=[(w, s) for w in (NARROW, WIDE) for s in ('light', 'dark')])
def browser(request, driver, file):
  """The page at a width in a color scheme; at the end nothing overflows, nothing was logged."""
  width, scheme = request.param
  media = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
  size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width == NARROW}
  driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
  driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
  driver.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', {'enabled': width == NARROW})
  driver.get(file.as_uri())
  browser = Page(driver, touched=width == NARROW, dark=scheme == 'dark')
  yield browser
  root = 'document.documentElement'
  assert browser.run(f'return {root}.scrollWidth - {root}.clientWidth') == 0
  assert driver.get_log('browser') == []


class Page:
  """What a reader sees and does."""

  def __init__(self, driver, touched, dark):
    self.driver, self.touched, self.dark = driver, touched, dark
    self.run = driver.execute_script

  def seen(self, selector):
    """Elements that are not hidden."""
    script = 'return [...document.querySelectorAll(arguments[0])].filter(x => x.checkVisibility())'
    return self.run(script, selector)

  def tap(self, element, across=0.5):
    """Touches or clicks an element at half its height and a fraction of its width."""
    self.run("arguments[0].scrollIntoView({block: 'center'})", element)
    left, top, width, height = self.run(
      'const r = arguments[0].getBoundingClientRect(); return [r.x, r.y, r.width, r.height]',
      element,
    )
    x, y = left + across * width, top + height / 2
    if not self.touched:
      actions = ActionChains(self.driver, duration=0)
      actions.w3c_actions.pointer_action.move_to_location(round(x), round(y)).click()
      return actions.perform()
    for kind, points in (('touchStart', [{'x': x, 'y': y}]), ('touchEnd', [])):
      event = {'type': kind, 'touchPoints': points}
      self.driver.execute_cdp_cmd('Input.dispatchTouchEvent', event)

  def press(self, *keys):
    ActionChains(self.driver, duration=0).send_keys(*keys).perform()

  def focused(self):
    return self.driver.switch_to.active_element

  def shows_photo(self, number):
    for section in OF_PHOTO:
      shown = self.seen(f'{section} .of-photo')
      assert [each.get_attribute('data-photo') for each in shown] == [str(number)], section

  def shows_view(self, button):
    buttons, (frame,) = self.seen('.views button'), self.seen('#guess .frame')
    pressed = [each for each in buttons if each.get_attribute('aria-pressed') == 'true']
    assert pressed == [button]
    for name in ('x', 'y'):
      assert frame.get_attribute(name) == button.get_attribute(f'data-{name}')
    assert self.in_window(frame)

  def in_window(self, element):
    """Whether at least its top is below what sticks to the window's top, and above its end."""
    top = self.run('return arguments[0].getBoundingClientRect().top', element)
    return self.seen('.picker')[0].size['height'] - 5 <= top < 900

  def covered(self):
    """Where the gray square is, and what is said of it."""
    (cover,), (output,) = self.seen('.cover'), self.seen('output b')
    return ' '.join(map(cover.get_attribute, ('x', 'y', 'width', 'height'))), output.text

  def shows_cell(self, cell):
    names = 'square', 'share', 'points', 'then'
    square, share, points, then = (cell.get_attribute(f'data-{name}') for name in names)
    assert self.covered() == (square, f'{share}, {points} points')
    assert self.seen('output i')[0].get_attribute('textContent') == then

  def shows_target(self, link):
    target = link.get_dom_attribute('href')
    (found,) = self.seen(target)
    assert self.in_window(found), target

  def shows_step(self, name):
    (step,) = self.seen('.step')
    assert step.get_attribute('data-step') == name

  def cut(self):
    """Where after begins, in percent."""
    (compare,) = self.seen('.compare')
    return int(self.run("return arguments[0].style.getPropertyValue('--cut')", compare)[:-1])


def test_names_are_text_and_colors_those_of_the_scheme(browser):
  (heading,) = browser.seen('#guess .of-photo > p')
  assert heading.text == '<script>alert(2)<&>.png, in the folder “bee”'
  assert NASTY in {each.text for each in browser.seen('.bars span')}
  assert len(browser.driver.find_elements('tag name', 'script')) == 1
  ink, paper = (
    sum(map(int, browser.seen('body')[0].value_of_css_property(name)[5:-1].split(',')[:3]))
    for name in ('color', 'background-color')
  )
  assert ink - paper > 500 if browser.dark else paper - ink > 500


def test_keys_alone_reach_and_use_every_control(browser):
  used = set()
  for fold in browser.seen('details'):
    browser.run('arguments[0].open = true', fold)
  for _ in range(200):
    browser.press(Keys.TAB)
    control = browser.focused()
    if control.tag_name == 'body':
      break
    used.add(control)
    match control.tag_name, control.get_attribute('class'):
      case 'input', '':
        browser.press(Keys.ARROW_RIGHT)
        browser.shows_photo(1)
        browser.press(Keys.ARROW_LEFT)
        browser.shows_photo(0)
      case 'button', _:
        browser.press(Keys.ENTER)
        browser.shows_view(control)
        browser.press(Keys.SPACE)
        assert not browser.seen('.frame')
      case 'div', _:
        cells = control.find_elements('css selector', '.cell')
        middle = len(cells) // 2
        for key, place in (
          (Keys.ARROW_LEFT, middle),  # the first key shows it where it is
          (Keys.ARROW_LEFT, middle - 1),
          (Keys.ARROW_UP, middle - 10),
          (Keys.ARROW_RIGHT, middle - 9),
          (Keys.ARROW_DOWN, middle),
        ):
          browser.press(key)
          browser.shows_cell(cells[place])
      case 'a', _:
        browser.press(Keys.ENTER)
        browser.shows_target(control)
        browser.run('arguments[0].focus()', control)  # it went along
      case 'summary', _:
        browser.press(Keys.ENTER, Keys.ENTER)
      case 'select', _:
        names = [option.text for option in Select(control).options]
        browser.press(names[1])
        browser.shows_step(names[1])
      case 'input', 'slider':
        browser.press(Keys.HOME, *[Keys.ARROW_RIGHT] * 5)
        assert browser.cut() == 5
        browser.press(Keys.END)
        assert browser.cut() == 100
      case other:
        raise AssertionError(f'a control that this test does not know: {other}')
  everything = browser.seen('a, button, input, select, summary, [tabindex]')
  radios = set(browser.seen('[type=radio]'))  # one stop for all of them
  assert used == set(everything) - radios | {browser.seen('[type=radio]')[0]}
  assert len(everything) > 20


def test_pointer_or_touch_alone_uses_every_control(browser):
  for number in (1, 0, 1):
    browser.tap(browser.seen('[type=radio]')[number])
    browser.shows_photo(number)
  for button in browser.seen('.views button'):
    browser.tap(button)
    browser.shows_view(button)
  browser.tap(button)
  assert not browser.seen('.frame')
  for cell in browser.seen('.cell')[::20]:
    browser.tap(cell)
    browser.shows_cell(cell)
    browser.tap(browser.seen('#occlusion h2')[0])
    browser.shows_cell(cell)  # a click keeps it, another lets it go
  browser.tap(cell)
  browser.tap(browser.seen('#occlusion h2')[0])
  assert not browser.seen('.cover') and browser.seen('output b')[0].text == '–'
  for link in browser.seen('.net a'):
    browser.tap(link.find_element('css selector', 'text'))
    browser.shows_target(link)
    browser.driver.back()
    assert browser.in_window(link)
  (select,) = browser.seen('select')
  for option in Select(select).options:
    Select(select).select_by_visible_text(option.text)
    browser.shows_step(option.text)
    browser.tap(browser.seen('[type=radio]')[0])
    browser.shows_step(option.text)
    browser.tap(browser.seen('.slider')[0], across=0.25)
    assert browser.cut() == pytest.approx(25, abs=4)
