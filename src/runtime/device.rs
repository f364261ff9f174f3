//! The names of devices and precisions, as flags, manifests and fingerprints spell them.

use std::fmt;
use std::str::FromStr;

/// Where a model computes. A device that was named is used or refused; only `Auto` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA if it is usable, else the CPU.
    #[default]
    Auto,
    Cpu,
    OpenVino,
    /// A CUDA device by its number.
    Cuda(u32),
}

impl Device {
    /// Whether models run on the cores that everything else runs on.
    pub fn is_cpu(self) -> bool {
        !matches!(self, Self::Cuda(_))
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
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is not a device: use auto, cpu, openvino, cuda or cuda:N")),
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
        }
    }
}

/// The arithmetic of a model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    Fp32,
    Bf16,
    Fp16,
    /// 8-bit integer weights (`clipcap model quantize`), one activation scale a row.
    Int8,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp32" => Ok(Self::Fp32),
            "bf16" => Ok(Self::Bf16),
            "fp16" => Ok(Self::Fp16),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("{text:?} is not a precision: use fp32, bf16, fp16 or int8")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        })
    }
}
