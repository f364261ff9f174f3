//! Why an image could not be used: a fixed list of reasons, and a sentence for the reader.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::files::ContentHash;

/// The fixed list of reasons an errors table may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// 0 bytes long.
    Empty,
    /// Gone since it was listed, or a symbolic link to nothing.
    Vanished,
    /// The file may not be read by this user.
    PermissionDenied,
    /// An I/O error, or a special file (which is never opened).
    Unreadable,
    /// Called an image, but its content begins like no format that is read.
    UnsupportedFormat,
    /// Begins like an image, and its data ends early.
    Truncated,
    /// More pixels or bytes than the limits allow.
    TooLarge,
    /// Any other failure to decode.
    Corrupt,
    /// It was read and captioned, and none of its captions may stay.
    Filtered,
    /// A server gave no usable answer, however often it was asked.
    Unreachable,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::Empty,
        Self::Vanished,
        Self::PermissionDenied,
        Self::Unreadable,
        Self::UnsupportedFormat,
        Self::Truncated,
        Self::TooLarge,
        Self::Corrupt,
        Self::Filtered,
        Self::Unreachable,
    ];

    /// The word in the errors table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Vanished => "vanished",
            Self::PermissionDenied => "permission_denied",
            Self::Unreadable => "unreadable",
            Self::UnsupportedFormat => "unsupported_format",
            Self::Truncated => "truncated",
            Self::TooLarge => "too_large",
            Self::Corrupt => "corrupt",
            Self::Filtered => "filtered",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "unknown reason {0:?} (known: empty, vanished, permission_denied, unreadable, unsupported_format, truncated, too_large, corrupt, filtered, unreachable)"
)]
/// A word that is not in the list of reasons.
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

/// What was read: enough to know the same bytes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Of the whole file.
    pub sha256: ContentHash,
    /// The file's size.
    pub bytes: u64,
}

/// A file that gives no pixels. It names no path: whoever asked knows which file it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// The kind of failure, as the errors table names it.
    pub reason: Reason,
    /// One sentence without a path, the same on every machine.
    pub message: String,
    /// Present where the whole file was read, so that the failure can be remembered by content.
    pub content: Option<Content>,
}

impl Failure {
    /// With a sentence for people.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), content: None }
    }

    /// What an error of the file system means for an image.
    pub fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(Reason::Vanished, "the file is not there any more"),
            // What a server said has words of its own.
            io::ErrorKind::PermissionDenied if error.get_ref().is_some() => {
                Self::new(Reason::PermissionDenied, error.to_string())
            }
            io::ErrorKind::PermissionDenied => Self::new(Reason::PermissionDenied, "no permission to read the file"),
            // Only servers that were asked again and again are told so.
            io::ErrorKind::HostUnreachable => Self::new(Reason::Unreachable, error.to_string()),
            _ => Self::new(Reason::Unreadable, format!("reading failed: {error}")),
        }
    }

    pub(super) fn with_content(mut self, content: &Content) -> Self {
        self.content = Some(content.clone());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_survive_their_text() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), reason);
            assert_eq!(format!("{reason:>20}").trim_start(), reason.as_str());
        }
        assert!("grey".parse::<Reason>().unwrap_err().to_string().contains("\"grey\""));
    }

    #[test]
    fn errors_of_the_file_system_have_their_reason() {
        let reason = |kind| Failure::from_io(&io::Error::from(kind)).reason;
        assert_eq!(reason(io::ErrorKind::NotFound), Reason::Vanished);
        assert_eq!(reason(io::ErrorKind::PermissionDenied), Reason::PermissionDenied);
        assert_eq!(reason(io::ErrorKind::TimedOut), Reason::Unreadable);
        assert_eq!(reason(io::ErrorKind::HostUnreachable), Reason::Unreachable);
    }
}
