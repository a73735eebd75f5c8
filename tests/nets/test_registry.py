"""Registries: new names, taken names, and parts that are defined again."""

import pytest

from resfit.errors import SpecError
from resfit.nets import ZOO, ResNetSpec, ZooRow
from resfit.nets.registry import Registry


def parts() -> Registry[object]:
    registry: Registry[object] = Registry("part")
    registry.register("max", max)
    return registry


def test_registered_names_keep_their_order() -> None:
    registry = parts()
    assert registry.register("least", min) is min
    assert dict(registry) == {"max": max, "least": min}
    assert "least" in registry
    assert len(registry) == 2


def test_a_taken_name_raises_and_keeps_its_part() -> None:
    registry = parts()
    with pytest.raises(SpecError, match=r"part 'max' is registered already.*new name.*\['max'\]"):
        registry.register("max", min)
    assert registry["max"] is max
    assert registry.register("max", max) is max  # the same part again


@pytest.mark.parametrize("name", ["", "two words", "1st", "a.b", 3])
def test_a_name_that_is_not_an_identifier_raises(name: str) -> None:
    with pytest.raises(SpecError, match=r"name of a part.*Expected letters"):
        parts().register(name, min)


def test_a_class_that_is_defined_again_replaces_the_old_one() -> None:
    """A notebook cell can run twice. Two lambdas are two parts."""

    def define() -> type:
        class Own:
            pass

        return Own

    registry = parts()
    registry.register("own", define())
    again = define()
    assert registry.register("own", again) is again
    assert registry["own"] is again
    registry.register("nameless", lambda: 1)
    with pytest.raises(SpecError, match="registered already"):
        registry.register("nameless", lambda: 2)


def test_an_equal_row_registers_twice_and_another_row_raises() -> None:
    row = ZOO["resnet20"]
    ZOO.register("resnet20", ZooRow(row.spec, 32, row.parameters, row.multiply_adds, row.source))
    with pytest.raises(SpecError, match="'resnet20' is registered already"):
        ZOO.register("resnet20", ZooRow(row.spec, 32, row.parameters + 1, row.multiply_adds, row.source))


def test_an_unknown_name_raises_and_the_error_names_register() -> None:
    for field, registry in (("block", "BLOCKS"), ("stem", "STEMS"), ("norm", "NORMS"), ("shortcut", "SHORTCUTS")):
        with pytest.raises(SpecError, match=rf"{field}='nobodys'.*resfit.nets.{registry}.register"):
            ResNetSpec(depths=(1,), widths=(4,), **{field: "nobodys"})
