"""Prints what setup.cfg requires at its lowest versions, as arguments for pip."""

import configparser
import pathlib

settings = configparser.ConfigParser()
settings.read(pathlib.Path(__file__).parents[1] / 'setup.cfg')
print(settings['options']['install_requires'].strip().replace('>=', '=='))
