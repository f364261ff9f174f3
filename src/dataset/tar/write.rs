//! Tars as this program writes them: the same bytes for the same members.

use std::io::{self, Write};

use super::BLOCK;
use super::header::padding;

/// A tar under construction. No times, no owners: what it holds is all that its bytes depend on.
pub struct TarWriter<W: Write> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// Begins a tar.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The output refuses.
    pub fn add(&mut self, name: &[u8], content: &[u8]) -> io::Result<()> {
        let short = &name[..name.len().min(100)];
        // Octal digits for sizes up to 8 GiB; beyond it, as with long names, a pax record says it.
        let is_long = content.len() as u64 >= 1 << 33;
        if name.len() > 100 || is_long {
            let mut records = pax_record("path", name);
            if is_long {
                records.extend(pax_record("size", content.len().to_string().as_bytes()));
            }
            self.member(b"././@PaxHeader", b'x', &records)?;
        }
        self.member(short, b'0', content)
    }

    fn member(&mut self, name: &[u8], kind: u8, content: &[u8]) -> io::Result<()> {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(100, "0000644");
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len() as u64 & ((1 << 33) - 1)));
        put(136, "00000000000");
        put(148, "        ");
        put(257, "ustar");
        put(263, "00");
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&block)?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; BLOCK][..padding(content.len() as u64) as usize])
    }

    /// Ends the tar.
    ///
    /// # Errors
    /// The output refuses.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// `LENGTH KEY=VALUE\n`, its own length among what is counted.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::super::{Member, MemberKind, Tar};
    use super::*;

    #[test]
    fn members_come_back_with_names_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let names: Vec<Vec<u8>> = [1, 99, 100, 101, 255, 987, 995, 4000]
            .map(|length| vec![b'n'; length])
            .into_iter()
            .chain([b"\xFF\xFE.jpg".to_vec()])
            .collect();
        let mut writer = TarWriter::new(Vec::new());
        for (i, name) in names.iter().enumerate() {
            writer.add(name, &vec![i as u8; i * 511]).unwrap();
        }
        std::fs::write(&path, writer.finish().unwrap()).unwrap();
        let mut tar = Tar::open(&path).unwrap();
        for (i, name) in names.iter().enumerate() {
            let bytes = i as u64 * 511;
            let member = tar.next_member().unwrap().unwrap();
            assert_eq!(member, Member { name: name.clone(), kind: MemberKind::File, bytes });
            if i % 2 == 0 {
                assert_eq!(tar.read(u64::MAX).unwrap(), vec![i as u8; i * 511]);
            }
        }
        assert!(tar.next_member().unwrap().is_none());
    }
}
