//! NumPy's `.npy` files, as far as vectors need them: little-endian float32 and float16, C order.

use std::io::{self, Read, Write};

use crate::dataset::normalize::excerpt;

/// How the numbers of a vector are stored, in `.npy` files and in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
}

impl FloatType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn descr(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
        }
    }
}

named!(FloatType, "an element type", F32 = "float32", F16 = "float16");

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// The type of the numbers.
    pub kind: FloatType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Bytes before the data.
    pub data_offset: u64,
}

/// Why a `.npy` file is not read.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The file cannot be read, or ends before its header does.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not a `.npy` file.
    #[error("it does not begin with NumPy's magic bytes")]
    Magic,
    /// A header of another version or form than NumPy writes.
    #[error("its header is not understood: {0}")]
    Header(String),
    /// Numbers of another type, as the header spells it.
    #[error("its elements are {0}, and only little-endian float32 (<f4) and float16 (<f2) are read: save it.astype('float32')")]
    Type(String),
    /// Columns are stored one after the other.
    #[error("its columns come first (fortran_order), and only row order is read: save numpy.ascontiguousarray(it)")]
    FortranOrder,
    /// The file is longer or shorter than its header says.
    #[error("it has {found} bytes of data where its shape {shape:?} needs {wanted}")]
    Size {
        /// As the header has it.
        shape: Vec<usize>,
        /// Bytes behind the header.
        found: u64,
        /// Bytes that the shape needs.
        wanted: u64,
    },
}

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Headers longer than this are not written by anyone.
const MOST_HEADER_BYTES: usize = 1 << 16;

/// Reads the header and checks it against the file's length.
pub fn read_header(file: &mut impl Read, file_bytes: u64) -> Result<NpyHeader, NpyError> {
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|_| NpyError::Magic)?;
    if &start[..6] != MAGIC {
        return Err(NpyError::Magic);
    }
    if !(1..=3).contains(&start[6]) {
        return Err(NpyError::Header(format!("format version {}", start[6])));
    }
    let (header_bytes, before) = if start[6] == 1 {
        let mut length = [0; 2];
        file.read_exact(&mut length)?;
        (usize::from(u16::from_le_bytes(length)), 10)
    } else {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        (u32::from_le_bytes(length) as usize, 12)
    };
    if header_bytes > MOST_HEADER_BYTES {
        return Err(NpyError::Header(format!("{header_bytes} bytes long")));
    }
    let mut header = vec![0; header_bytes];
    file.read_exact(&mut header)?;
    let header = String::from_utf8_lossy(&header);
    let kind = match quoted(value_of(&header, "descr")?) {
        Some("<f4" | "=f4") => FloatType::F32,
        Some("<f2" | "=f2") => FloatType::F16,
        other => return Err(NpyError::Type(other.unwrap_or("structured").into())),
    };
    match value_of(&header, "fortran_order")? {
        order if order.starts_with("False") => {}
        order if order.starts_with("True") => return Err(NpyError::FortranOrder),
        order => return Err(NpyError::Header(format!("fortran_order {}", excerpt(order.as_bytes(), 40)))),
    }
    let shape = value_of(&header, "shape")?;
    let inside = shape.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    let numbers = inside.into_iter().flat_map(|inside| inside.split(',')).map(str::trim).filter(|part| !part.is_empty());
    let shape = numbers
        .map(|part| part.parse().map_err(|_| NpyError::Header(format!("shape {}", excerpt(shape.as_bytes(), 40)))))
        .collect::<Result<Vec<usize>, _>>()?;
    let data_offset = (before + header_bytes) as u64;
    let wanted = shape.iter().try_fold(kind.size() as u64, |bytes, &n| bytes.checked_mul(n as u64));
    let found = file_bytes.saturating_sub(data_offset);
    if wanted != Some(found) {
        return Err(NpyError::Size { shape, found, wanted: wanted.unwrap_or(u64::MAX) });
    }
    Ok(NpyHeader { kind, shape, data_offset })
}

/// Writes the header of an array of shape [rows, columns], padded as NumPy pads it.
pub fn write_header(file: &mut impl Write, kind: FloatType, rows: u64, columns: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}", kind.descr());
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    file.write_all(MAGIC)?;
    file.write_all(&[1, 0])?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())
}

/// The text after `'key':` in the header's Python dictionary.
fn value_of<'a>(header: &'a str, key: &str) -> Result<&'a str, NpyError> {
    let found = [format!("'{key}'"), format!("\"{key}\"")].iter().find_map(|key| header.split_once(key.as_str()));
    let value = found.and_then(|(_, rest)| rest.trim_start().strip_prefix(':')).map(str::trim_start);
    value.ok_or_else(|| NpyError::Header(format!("no {key} in {}", excerpt(header.as_bytes(), 80))))
}

fn quoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn npy(descr: &str, order: &str, shape: &str, data: usize) -> Vec<u8> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<NpyHeader, NpyError> {
        read_header(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn headers_are_read_and_checked() {
        let header = read(&npy("'<f4'", "False", "(2, 3)", 24)).unwrap();
        assert_eq!((header.kind, header.shape), (FloatType::F32, vec![2, 3]));
        assert_eq!(read(&npy("'<f2'", "False", "(5,)", 10)).unwrap().shape, [5]);
        assert!(matches!(read(&npy("'<f4'", "True", "(2, 3)", 24)), Err(NpyError::FortranOrder)));
        assert!(matches!(read(&npy("'<f8'", "False", "(2, 3)", 48)), Err(NpyError::Type(t)) if t == "<f8"));
        assert!(matches!(read(&npy("'|O'", "False", "(2, 3)", 48)), Err(NpyError::Type(_))));
        assert!(matches!(read(&npy("'<f4'", "False", "(2, 3)", 20)), Err(NpyError::Size { wanted: 24, found: 20, .. })));
        let huge = npy("'<f4'", "False", "(99999999999, 99999999999)", 20);
        assert!(matches!(read(&huge), Err(NpyError::Size { .. })));
        assert!(matches!(read(b"PK\x03\x04aaaaaaaaaaaa"), Err(NpyError::Magic)));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, FloatType::F16, 3, 512).unwrap();
        assert_eq!(bytes.len() % 64, 0);
        bytes.extend(vec![0; 3 * 512 * 2]);
        let header = read(&bytes).unwrap();
        assert_eq!((header.kind, header.shape, header.data_offset % 64), (FloatType::F16, vec![3, 512], 0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let mut headed = MAGIC.to_vec();
            headed.extend([1, 0]);
            headed.extend(&bytes);
            let _ = read(&headed);
        }
    }
}
