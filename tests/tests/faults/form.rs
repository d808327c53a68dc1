//! How long a fault goes on.

/// Of two forms of one scenario, which is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Long enough to notice that something broke.
    Short,
    /// As long as promised.
    Full,
}

impl Form {
    /// The form that `POSTRIDER_FAULTS` asks for.
    pub(crate) fn asked() -> Self {
        match std::env::var("POSTRIDER_FAULTS").as_deref() {
            Ok("full") => Self::Full,
            _ => Self::Short,
        }
    }

    /// What this form takes.
    pub(crate) fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}
