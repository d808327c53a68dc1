//! An error and what caused it.

use std::error::Error;
use std::io;

/// An error with all its causes on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    // An `io::Error` says what the error says that it wraps.
    texts.dedup();
    texts.join(": ")
}

/// An error and what it wraps, from the outside in.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause_of(*error))
}

/// What an error wraps. An `io::Error` passes over what it wraps itself and names only the cause of
/// that.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file was not read")]
    struct Unread(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is gone")]
    struct Gone;

    #[test]
    fn each_cause_is_named_once_and_found_by_its_type() {
        let error = Unread(io::Error::other(Gone));
        assert_eq!(chain(&error), "the file was not read: the disk is gone");
        assert!(causes(&error).any(|cause| cause.is::<Gone>()));
    }
}
