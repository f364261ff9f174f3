//! Element types of tensors, and how stored elements become float32.

use half::{bf16, f16};

/// Element type of a tensor. Stored elements are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision: 5 bits of exponent, 10 of fraction.
    F16,
    /// The upper half of an F32.
    BF16,
    /// 64 bits, signed.
    I64,
    /// 32 bits, signed.
    I32,
    /// 16 bits, signed.
    I16,
    /// 8 bits, signed.
    I8,
    /// 8 bits, unsigned.
    U8,
    /// A byte, 0 or 1.
    Bool,
}

impl DType {
    /// ONNX's `TensorProto.DataType`.
    pub fn onnx_code(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I16 => 5,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::F64 => 11,
            Self::BF16 => 16,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// True for the types that hold weights; the others are buffers such as position ids and masks.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The name safetensors gives it.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    pub(crate) fn from_safetensors(dtype: ::safetensors::Dtype) -> Option<Self> {
        use ::safetensors::Dtype as Stored;
        Some(match dtype {
            Stored::F64 => Self::F64,
            Stored::F32 => Self::F32,
            Stored::F16 => Self::F16,
            Stored::BF16 => Self::BF16,
            Stored::I64 => Self::I64,
            Stored::I32 => Self::I32,
            Stored::I16 => Self::I16,
            Stored::I8 => Self::I8,
            Stored::U8 => Self::U8,
            Stored::BOOL => Self::Bool,
            _ => return None,
        })
    }

    /// Whole elements in `bytes`, as float32; the conversion rounds to nearest. A remainder is left out.
    pub fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
        }
        match self {
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(bytes, |[b]| f32::from(b as i8)),
            Self::U8 => each(bytes, |[b]| f32::from(b)),
            Self::Bool => each(bytes, |[b]| f32::from(b != 0)),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_minus_one_or_one() {
        let cases: [(DType, Vec<u8>, f32); 10] = [
            (DType::F64, (-1f64).to_le_bytes().to_vec(), -1.0),
            (DType::F32, (-1f32).to_le_bytes().to_vec(), -1.0),
            (DType::F16, vec![0x00, 0xbc], -1.0),
            (DType::BF16, vec![0x80, 0xbf], -1.0),
            (DType::I64, (-1i64).to_le_bytes().to_vec(), -1.0),
            (DType::I32, (-1i32).to_le_bytes().to_vec(), -1.0),
            (DType::I16, (-1i16).to_le_bytes().to_vec(), -1.0),
            (DType::I8, vec![0xff], -1.0),
            (DType::U8, vec![0xff], 255.0),
            (DType::Bool, vec![2], 1.0),
        ];
        for (dtype, bytes, value) in cases {
            assert_eq!(bytes.len(), dtype.size(), "{dtype}");
            assert_eq!(dtype.to_f32(&bytes), [value], "{dtype}");
        }
    }
}
