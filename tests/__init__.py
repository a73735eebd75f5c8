"""The tests of resfit. This file lets no other package named `tests` in the environment stand before this one."""
