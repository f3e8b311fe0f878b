"""What both clients' handles tell of a job, a sweep or a range test, without asking the server."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from client.answers import Ending, JobData, JobSpec, RangeTestData, Suggestion, SweepData

DataT = TypeVar("DataT", bound=Ending)


class View(ABC, Generic[DataT]):
    """What is known of something that will end, as it was when the server last said something of it."""

    @property
    @abstractmethod
    def data(self) -> DataT:
        """All of it, as the REST API has it. `refresh` asks anew."""

    @property
    def id(self) -> str:
        return self.data["id"]

    @property
    def status(self) -> str:
        """One of the words that the REST API has for it; there may be more of them one day."""
        return self.data["status"]

    @property
    def terminal(self) -> bool:
        """Whether it has ended, and everything there will be is there."""
        return self.data["terminal"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"


class JobView(View[JobData]):
    @property
    def spec(self) -> JobSpec:
        """What was asked for, with all defaults."""
        return self.data["spec"]


class SweepView(View[SweepData]):
    pass


class RangeTestView(View[RangeTestData]):
    @property
    def suggestion(self) -> Suggestion:
        """The rate that suggests itself; `outcome` and `sentence` say why, or why none."""
        return self.data["suggestion"]
