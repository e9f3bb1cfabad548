//! Desired, Observed, diff, Plan; FakeDatapath.
