use std::path::PathBuf;

/// What can be wrong with a vocabulary file or a text to encode. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {bytes} bytes are too many for a vocabulary (at most {limit}): is this the right file?", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{}: more than {limit} entries: is this the right file?", path.display())]
    TooManyEntries { path: PathBuf, limit: usize },
    #[error("{}, line {line}: not UTF-8 text: a vocabulary has one piece per line, in UTF-8", path.display())]
    NotUtf8 { path: PathBuf, line: usize },
    #[error("{}, line {line}: {bytes} bytes are too many for a piece (at most {limit}): is this the right file?", path.display())]
    LineTooLong { path: PathBuf, line: usize, bytes: usize, limit: usize },
    #[error("{}, line {line}: {piece} is already on line {first_line}: a special token must have one id", path.display())]
    DuplicateSpecial { path: PathBuf, line: usize, first_line: usize, piece: String },
    #[error("{}: no entry {piece}: a BERT vocabulary needs one, alone on its line", path.display())]
    MissingSpecial { path: PathBuf, piece: &'static str },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("cannot encode a text of {bytes} bytes: {source}")]
    Encode { bytes: usize, source: Box<dyn std::error::Error + Send + Sync> },
}
