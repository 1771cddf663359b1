"""Tables of crystals with properties: opened, read, prepared and split."""

from sitenet.data.dataset import Dataset as Dataset
from sitenet.data.dataset import Preparation as Preparation
from sitenet.data.dataset import read as read
from sitenet.data.duplicates import find_duplicates as find_duplicates
from sitenet.data.failures import LeftOut as LeftOut
from sitenet.data.splits import Split as Split
from sitenet.data.splits import split as split
