"""Methods that mean "this sandbox" on an object and "the sandbox with that id" on the class."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

OfClass = ParamSpec("OfClass")
OfObject = ParamSpec("OfObject")
ClassResult = TypeVar("ClassResult", covariant=True)
ObjectResult = TypeVar("ObjectResult", covariant=True)


class Either(Generic[OfClass, ClassResult, OfObject, ObjectResult]):
    """`Sandbox.kill(sandbox_id)` and `sandbox.kill()` under one name."""

    def __init__(
        self,
        of_class: Callable[Concatenate[Any, OfClass], ClassResult],
        of_object: Callable[Concatenate[Any, OfObject], ObjectResult],
    ) -> None:
        """Take the function of the class and the method; both get their owner first."""
        self._of_class = of_class
        self._of_object = of_object
        self.__doc__ = of_object.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[OfClass, ClassResult]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[OfObject, ObjectResult]: ...
    def __get__(
        self, instance: object | None, owner: type
    ) -> Callable[OfClass, ClassResult] | Callable[OfObject, ObjectResult]:
        if instance is None:
            return MethodType(self._of_class, owner)
        return MethodType(self._of_object, instance)
