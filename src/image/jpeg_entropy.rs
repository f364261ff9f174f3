//! Whether a JPEG's entropy-coded data is all there.
//!
//! Decoders paint what is missing grey and say nothing, or stop at the first oddity. Here the Huffman codes of a suspicious file
//! are walked (no pixels are computed), so that "ends early", "damaged" and "merely odd" can be told apart. Only files without
//! an end marker, or that a strict decoder refused, come here, so that plain code matters more than speed.

use super::jpeg_segments::{DHT, DRI, EOI, SOI, SOS, next_segment};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every block of every coefficient has its code.
    Complete,
    /// The data ends before the picture does.
    EndsEarly,
    /// Something that is not a code of this picture.
    Damaged,
}

/// Why a scan could not be walked to its end.
enum Stop {
    EndOfFile,
    Marker(u8),
    BadCode,
}

impl From<Stop> for Verdict {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::EndOfFile | Stop::Marker(EOI) => Self::EndsEarly,
            Stop::Marker(_) | Stop::BadCode => Self::Damaged,
        }
    }
}

/// Walks a whole file. The frame's size must have been checked against the limits before.
pub(super) fn judge(bytes: &[u8]) -> Verdict {
    let mut walk = Walk::default();
    let mut at = 2;
    loop {
        let Some(segment) = next_segment(bytes, at) else {
            return if walk.covers_everything() { Verdict::Complete } else { Verdict::EndsEarly };
        };
        at = segment.end;
        let ok = match segment.marker {
            0xC0..=0xC2 if walk.components.is_empty() => walk.start_frame(segment.marker, segment.payload),
            DHT => walk.define_tables(segment.payload),
            DRI => walk.set_restart_interval(segment.payload),
            SOS => {
                let mut bits = Bits { bytes, at, held: 0, count: 0 };
                match walk.scan(segment.payload, &mut bits) {
                    Some(Ok(())) => at = bits.at,
                    Some(Err(stop)) => return stop.into(),
                    None => return Verdict::Damaged,
                }
                Some(())
            }
            EOI | SOI => return if walk.any_scan { Verdict::Complete } else { Verdict::Damaged },
            0xC0..=0xCF => None,
            _ => Some(()),
        };
        if ok.is_none() {
            return Verdict::Damaged;
        }
    }
}

/// Canonical Huffman codes: for each length the largest code, and where its values begin.
#[derive(Clone)]
struct Table {
    largest: [i32; 17],
    offset: [i32; 17],
    values: Vec<u8>,
}

struct Component {
    id: u8,
    /// Blocks a MCU, across and down.
    h: usize,
    v: usize,
    /// Blocks the picture needs, across and down (a scan of this component alone has so many).
    wide: usize,
    high: usize,
    /// Blocks a row in `nonzero`: whole MCUs.
    stride: usize,
    dc: usize,
    ac: usize,
    /// Progressive only: a bit for each coefficient that is not zero, by block.
    nonzero: Vec<u64>,
    /// Lowest bit position received so far by coefficient; `NEVER` before its first scan.
    received: [u8; 64],
}

const NEVER: u8 = u8::MAX;

#[derive(Default)]
struct Walk {
    progressive: bool,
    components: Vec<Component>,
    mcus: (usize, usize),
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart_interval: usize,
    any_scan: bool,
}

/// Which coefficients a progressive scan brings, and which of their bits.
struct Band {
    first: usize,
    last: usize,
    high: u8,
    low: u8,
}

impl Walk {
    fn covers_everything(&self) -> bool {
        !self.components.is_empty() && self.components.iter().all(|c| c.received.iter().all(|&bit| bit == 0))
    }

    fn start_frame(&mut self, marker: u8, payload: &[u8]) -> Option<()> {
        self.progressive = marker == 0xC2;
        let (&[8, h1, h0, w1, w0, count], specs) = payload.split_first_chunk::<6>()? else { return None };
        let (height, width) = (usize::from(u16::from_be_bytes([h1, h0])), usize::from(u16::from_be_bytes([w1, w0])));
        if width == 0 || height == 0 || !(1..=4).contains(&count) || specs.len() < 3 * usize::from(count) {
            return None;
        }
        let specs: Vec<_> = specs.chunks_exact(3).take(count.into()).collect();
        let sampling = |spec: &[u8]| (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
        if specs.iter().any(|s| !(1..=4).contains(&sampling(s).0) || !(1..=4).contains(&sampling(s).1)) {
            return None;
        }
        let h_max = specs.iter().map(|s| sampling(s).0).max()?;
        let v_max = specs.iter().map(|s| sampling(s).1).max()?;
        self.mcus = (width.div_ceil(8 * h_max), height.div_ceil(8 * v_max));
        for spec in specs {
            let (h, v) = sampling(spec);
            let stride = self.mcus.0 * h;
            self.components.push(Component {
                id: spec[0],
                h,
                v,
                wide: (width * h).div_ceil(h_max).div_ceil(8),
                high: (height * v).div_ceil(v_max).div_ceil(8),
                stride,
                dc: 0,
                ac: 0,
                nonzero: if self.progressive { vec![0; stride * self.mcus.1 * v] } else { Vec::new() },
                received: [NEVER; 64],
            });
        }
        Some(())
    }

    fn define_tables(&mut self, mut payload: &[u8]) -> Option<()> {
        while let Some((&kind, rest)) = payload.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total: usize = counts.iter().map(|&n| usize::from(n)).sum();
            let mut table = Table { largest: [-1; 17], offset: [0; 17], values: rest.get(..total)?.to_vec() };
            let (mut code, mut index) = (0, 0);
            for (length, &n) in (1..).zip(counts) {
                table.offset[length] = index - code;
                code += i32::from(n);
                index += i32::from(n);
                table.largest[length] = if n > 0 { code - 1 } else { -1 };
                code <<= 1;
            }
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(kind & 15))? = Some(table);
            payload = &rest[total..];
        }
        Some(())
    }

    fn set_restart_interval(&mut self, payload: &[u8]) -> Option<()> {
        self.restart_interval = usize::from(u16::from_be_bytes(*payload.first_chunk()?));
        Some(())
    }

    /// Walks one scan. None where its header makes no sense.
    fn scan(&mut self, header: &[u8], bits: &mut Bits) -> Option<Result<(), Stop>> {
        let (&count, rest) = header.split_first()?;
        let count = usize::from(count);
        let mut members = Vec::new();
        for pair in rest.get(..2 * count)?.chunks_exact(2) {
            let index = self.components.iter().position(|c| c.id == pair[0])?;
            self.components[index].dc = usize::from(pair[1] >> 4);
            self.components[index].ac = usize::from(pair[1] & 15);
            members.push(index);
        }
        let &[first, last, precision] = rest.get(2 * count..)?.first_chunk()?;
        let band = if self.progressive {
            Band { first: first.into(), last: last.into(), high: precision >> 4, low: precision & 15 }
        } else {
            Band { first: 0, last: 63, high: 0, low: 0 }
        };
        let sensible = band.first <= band.last && band.last < 64 && !members.is_empty();
        if !sensible || (self.progressive && band.first == 0 && band.last != 0) || (band.first > 0 && members.len() > 1) {
            return None;
        }
        self.any_scan = true;
        let result = self.scan_mcus(&members, &band, bits);
        if result.is_ok() {
            for &index in &members {
                self.components[index].received[band.first..=band.last].fill(band.low);
            }
        }
        Some(result)
    }

    fn scan_mcus(&mut self, members: &[usize], band: &Band, bits: &mut Bits) -> Result<(), Stop> {
        let alone = members.len() == 1;
        let (across, down) = match members {
            [only] => (self.components[*only].wide, self.components[*only].high),
            _ => self.mcus,
        };
        let (dc, ac, progressive) = (&self.dc, &self.ac, self.progressive);
        let mut end_of_band_run = 0;
        for mcu in 0..across * down {
            if self.restart_interval > 0 && mcu > 0 && mcu % self.restart_interval == 0 {
                bits.restart()?;
                end_of_band_run = 0;
            }
            let (x, y) = (mcu % across, mcu / across);
            for &index in members {
                let component = &mut self.components[index];
                let (h, v) = if alone { (1, 1) } else { (component.h, component.v) };
                for block in 0..h * v {
                    let dc = dc.get(component.dc).and_then(Option::as_ref);
                    let ac = ac.get(component.ac).and_then(Option::as_ref);
                    if !progressive {
                        bits.sequential_block(dc, ac)?;
                    } else if band.first == 0 {
                        bits.progressive_dc(dc, band)?;
                    } else {
                        let at = (y * v + block / h) * component.stride + x * h + block % h;
                        let nonzero = &mut component.nonzero[at];
                        bits.progressive_ac(ac, band, nonzero, &mut end_of_band_run)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Entropy-coded bits, most significant first, with stuffed zeros taken out.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u8,
    count: u8,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<u32, Stop> {
        if self.count == 0 {
            let byte = *self.bytes.get(self.at).ok_or(Stop::EndOfFile)?;
            if byte == 0xFF {
                match *self.bytes.get(self.at + 1).ok_or(Stop::EndOfFile)? {
                    0x00 => self.at += 1,
                    marker => return Err(Stop::Marker(marker)),
                }
            }
            self.at += 1;
            (self.held, self.count) = (byte, 8);
        }
        self.count -= 1;
        Ok(u32::from(self.held >> self.count & 1))
    }

    fn bits(&mut self, count: u8) -> Result<u32, Stop> {
        (0..count).try_fold(0, |value, _| Ok(value << 1 | self.bit()?))
    }

    fn symbol(&mut self, table: Option<&Table>) -> Result<u8, Stop> {
        let table = table.ok_or(Stop::BadCode)?;
        let mut code = 0;
        for length in 1..=16 {
            code = code << 1 | self.bit()? as i32;
            if code <= table.largest[length] {
                return usize::try_from(code + table.offset[length])
                    .ok()
                    .and_then(|index| table.values.get(index).copied())
                    .ok_or(Stop::BadCode);
            }
        }
        Err(Stop::BadCode)
    }

    /// Drops the rest of the byte and goes behind the next marker, which must be a restart.
    fn restart(&mut self) -> Result<(), Stop> {
        self.count = 0;
        let segment = next_segment(self.bytes, self.at).ok_or(Stop::EndOfFile)?;
        match segment.marker {
            0xD0..=0xD7 => {
                self.at = segment.end;
                Ok(())
            }
            marker => Err(Stop::Marker(marker)),
        }
    }

    /// A DC difference's size and value.
    fn difference(&mut self, dc: Option<&Table>) -> Result<(), Stop> {
        match self.symbol(dc)? {
            size @ 0..=16 => self.bits(size).map(drop),
            _ => Err(Stop::BadCode),
        }
    }

    fn sequential_block(&mut self, dc: Option<&Table>, ac: Option<&Table>) -> Result<(), Stop> {
        self.difference(dc)?;
        let mut k = 1;
        while k < 64 {
            match self.symbol(ac)? {
                0x00 => break,
                0xF0 => k += 16,
                code => {
                    k += usize::from(code >> 4);
                    self.bits(code & 15)?;
                    if k > 63 {
                        return Err(Stop::BadCode);
                    }
                    k += 1;
                }
            }
        }
        Ok(())
    }

    fn progressive_dc(&mut self, dc: Option<&Table>, band: &Band) -> Result<(), Stop> {
        if band.high == 0 { self.difference(dc) } else { self.bit().map(drop) }
    }

    /// One block of an AC band. `run` is how many further blocks have nothing new.
    fn progressive_ac(&mut self, ac: Option<&Table>, band: &Band, nonzero: &mut u64, run: &mut u32) -> Result<(), Stop> {
        let refining = band.high != 0;
        let mut k = band.first;
        while *run == 0 && k <= band.last {
            let code = self.symbol(ac)?;
            let (mut zeros, size) = (code >> 4, code & 15);
            if size == 0 && zeros < 15 {
                *run = (1 << zeros) + self.bits(zeros)?;
                break;
            }
            if refining {
                if size != 0 {
                    self.bit()?;
                }
                // Coefficients known before take a correction bit each and do not count among the zeros.
                while k <= band.last {
                    if *nonzero >> k & 1 == 1 {
                        self.bit()?;
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    k += 1;
                }
            } else {
                self.bits(size)?;
                k += usize::from(zeros);
            }
            if size != 0 {
                if k > band.last {
                    return Err(Stop::BadCode);
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
        if *run > 0 {
            *run -= 1;
            if refining {
                for k in k..=band.last {
                    if *nonzero >> k & 1 == 1 {
                        self.bit()?;
                    }
                }
            }
        }
        Ok(())
    }
}
