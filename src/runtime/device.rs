//! The names of devices and precisions, as flags, manifests and fingerprints spell them.

use std::fmt;
use std::str::FromStr;

/// Where a model computes. A device that was named is used or refused; only `Auto` chooses.
///
/// ```
/// use clipcap::runtime::Device;
/// assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
/// assert_eq!("cuda:3,0".parse::<Device>().unwrap().to_string(), "cuda:0,3");
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA if it is usable, else the CPU; runs over images may choose OpenVINO in its place before.
    #[default]
    Auto,
    /// ONNX Runtime's own CPU provider.
    Cpu,
    /// OpenVINO, on the CPU.
    OpenVino,
    /// A CUDA device by its number.
    Cuda(u32),
    /// Several CUDA devices side by side, a model on each.
    Cards(CardSet),
}

/// Numbers of cards, 0 to 63, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardSet(u64);

impl CardSet {
    /// In ascending order.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |number| self.0 >> number & 1 == 1)
    }

    /// Of `0,1,3`: each number once, two or more.
    fn parse(text: &str) -> Option<Self> {
        let mut set = 0u64;
        for number in text.split(',') {
            let bit = 1u64.checked_shl(number.parse().ok()?)?;
            if set & bit != 0 {
                return None;
            }
            set |= bit;
        }
        (set.count_ones() > 1).then_some(Self(set))
    }
}

impl Device {
    /// Whether models run on the cores that everything else runs on.
    pub fn is_cpu(self) -> bool {
        !matches!(self, Self::Cuda(_) | Self::Cards(_))
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "openvino" => Ok(Self::OpenVino),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|numbers| numbers.parse().ok().map(Self::Cuda).or_else(|| CardSet::parse(numbers).map(Self::Cards)))
                .ok_or_else(|| format!("{text:?} is not a device: use auto, cpu, openvino, cuda, cuda:N or cuda:N,M")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::OpenVino => f.write_str("openvino"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Cards(set) => {
                let numbers: Vec<String> = set.numbers().map(|number| number.to_string()).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

/// The arithmetic of a model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    Fp32,
    /// bfloat16 products with sums in single precision: OpenVINO, and training on cards.
    Bf16,
    /// Half precision, on cards.
    Fp16,
    /// 8-bit integer weights (`clipcap model quantize`), one activation scale a row.
    Int8,
}

named!(Precision, "a precision", Fp32 = "fp32", Bf16 = "bf16", Fp16 = "fp16", Int8 = "int8");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spelled_as_they_are_read() {
        for text in ["auto", "cpu", "openvino", "cuda:0", "cuda:3", "cuda:0,1", "cuda:0,2,63"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:2,0".parse::<Device>().unwrap().to_string(), "cuda:0,2");
        for text in ["gpu", "cuda:", "cuda:x", "cuda:0,0", "cuda:0,", "cuda:0,64"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
