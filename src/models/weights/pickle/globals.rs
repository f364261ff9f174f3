//! The names a pickle may use, and what each means.

use super::arena::{Arena, Id, Object, Storage, Tensor};
use crate::models::weights::DType;

/// A name on the list.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::weights) enum Global {
    /// `torch._utils._rebuild_tensor`, `_v2` and `_v3`: (storage, offset, size, stride, requires_grad, hooks, then `v3`'s dtype, then a
    /// dictionary with the bits `neg` and `conj`).
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: (tensor, ...).
    RebuildParameter,
    OrderedDict,
    /// `torch.FloatStorage` and its like; None for bytes without a type.
    StorageType(Option<DType>),
    /// `torch.float32` and its like.
    DType(DType),
    /// `torch.Size`: a tuple of its argument.
    Size,
    /// `torch.jit._pickle.build_intlist` and its like: their first argument as it is.
    FirstArgument,
    /// `torch.device` and its like: carry no weights.
    Opaque,
    /// One of a TorchScript archive's own classes.
    ScriptClass,
}

impl Global {
    /// None where the name is not on the list.
    pub fn named(module: &str, name: &str, script: bool) -> Option<Self> {
        if script && (module == "__torch__" || module.starts_with("__torch__.")) {
            return Some(Self::ScriptClass);
        }
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch" | "torch.cuda" | "torch.storage", name) if name.ends_with("Storage") => storage_type(name)?,
            ("torch", "Size") => Self::Size,
            ("torch", "device") | ("torch.serialization", "_get_layout") => Self::Opaque,
            ("torch", name) => Self::DType(dtype(name)?),
            (
                "torch.jit._pickle",
                "build_intlist" | "build_tensorlist" | "build_doublelist" | "build_boollist" | "restore_type_tag",
            ) => Self::FirstArgument,
            _ => return None,
        })
    }
}

fn storage_type(name: &str) -> Option<Global> {
    Some(Global::StorageType(Some(match name {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        "UntypedStorage" => return Some(Global::StorageType(None)),
        _ => return None,
    })))
}

fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint8" => DType::U8,
        "bool" => DType::Bool,
        _ => return None,
    })
}

/// Tensors of published models have up to 5 dimensions.
const MAX_RANK: usize = 16;

/// Keys are small numbers or addresses; each tensor keeps a copy of its storage's key.
const MAX_KEY_BYTES: usize = 64;

/// What calling `global` with `arguments` makes, or what is wrong with that.
pub(super) fn call(arena: &Arena, global: &Global, arguments: &[Id]) -> Result<Object, String> {
    let argument = |index: usize| arguments.get(index).map(|&id| arena.get(id)).ok_or("a call lacks an argument");
    match global {
        Global::RebuildTensor => {
            let Object::Storage(storage) = argument(0)? else { return Err("a tensor without a storage".into()) };
            let Object::Int(offset) = argument(1)? else { return Err("a tensor's offset is not a number".into()) };
            let sizes = |object: &Object| match object {
                Object::Tuple(ids) | Object::List(ids) if ids.len() <= MAX_RANK => ids
                    .iter()
                    .map(|&id| match arena.get(id) {
                        Object::Int(value) => u64::try_from(*value).map_err(|_| format!("a tensor with {value} in its shape")),
                        _ => Err("a tensor's shape is not made of numbers".into()),
                    })
                    .collect::<Result<Vec<u64>, String>>(),
                _ => Err("a tensor's shape is not a short tuple".into()),
            };
            let (shape, strides) = (sizes(argument(2)?)?, sizes(argument(3)?)?);
            if shape.len() != strides.len() {
                return Err(format!("a tensor with {} sizes and {} strides", shape.len(), strides.len()));
            }
            let explicit = match arguments.get(6).map(|&id| arena.get(id)) {
                Some(Object::Global(Global::DType(dtype))) => Some(*dtype),
                _ => None,
            };
            // Bits that say the stored numbers are not yet what the tensor is.
            for &id in arguments.iter().skip(6) {
                for (key, value) in arena.items(id).unwrap_or_default() {
                    if let Some(bit @ ("neg" | "conj")) = arena.text(*key)
                        && !matches!(arena.get(*value), Object::Bool(false) | Object::None)
                    {
                        return Err(format!("a tensor with PyTorch's {bit} bit: save it with .resolve_{bit}() first"));
                    }
                }
            }
            let dtype = explicit.or(storage.dtype).ok_or("a tensor without an element type")?;
            let offset = u64::try_from(*offset).map_err(|_| format!("a tensor at offset {offset}"))?;
            let storage = Storage::clone(storage);
            Ok(Object::Tensor(Box::new(Tensor { storage, dtype, offset, shape, strides })))
        }
        Global::RebuildParameter => match argument(0)? {
            tensor @ Object::Tensor(_) => Ok(tensor.clone()),
            _ => Err("a parameter that is not a tensor".into()),
        },
        Global::OrderedDict => match arguments.first().map(|&id| arena.get(id)) {
            None => Ok(Object::Dict(vec![])),
            Some(Object::List(pairs) | Object::Tuple(pairs)) => pairs
                .iter()
                .map(|&pair| match arena.get(pair) {
                    Object::Tuple(pair) | Object::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                    _ => Err("a dictionary made of something other than pairs".to_string()),
                })
                .collect::<Result<_, _>>()
                .map(Object::Dict),
            Some(_) => Err("a dictionary made of something other than pairs".into()),
        },
        Global::Size => match arguments.first().map(|&id| arena.get(id)) {
            Some(Object::Tuple(sizes) | Object::List(sizes)) if sizes.len() <= MAX_RANK => Ok(Object::Tuple(sizes.clone())),
            _ => Err("a size that is not a short tuple".into()),
        },
        Global::Opaque => Ok(Object::Opaque),
        Global::StorageType(_) | Global::DType(_) | Global::ScriptClass | Global::FirstArgument => {
            Err("something is called that cannot be".into())
        }
    }
}

/// The storage a persistent id names: `("storage", type, key, location, numel[, view])`.
pub(super) fn storage(arena: &Arena, id: Id) -> Result<Object, String> {
    let Object::Tuple(parts) = arena.get(id) else { return Err("a persistent id that is not a tuple".into()) };
    let part = |index: usize| parts.get(index).map(|&id| arena.get(id));
    let kind = match part(0) {
        Some(Object::Text(kind)) => kind.as_str(),
        _ => "",
    };
    if kind != "storage" {
        return Err(format!("a persistent id of kind {kind:?}; only storages are known"));
    }
    let (Some(Object::Global(Global::StorageType(dtype))), Some(Object::Text(key))) = (part(1), part(2)) else {
        return Err("a storage without a type or a key".into());
    };
    let Some(&Object::Int(numel)) = part(4) else { return Err("a storage without a length".into()) };
    let number = |value: i64| u64::try_from(value).map_err(|_| format!("a storage with {value} as its length or offset"));
    if key.len() > MAX_KEY_BYTES {
        return Err(format!("a storage with a key of {} bytes", key.len()));
    }
    let mut storage = Storage { key: key.clone(), dtype: *dtype, numel: number(numel)?, view_offset: 0 };
    if let Some(Object::Tuple(view)) = part(5) {
        // Legacy: (key of the view, offset, length).
        let [_, offset, length] = view[..] else { return Err("a malformed view of a storage".into()) };
        let (&Object::Int(offset), &Object::Int(length)) = (arena.get(offset), arena.get(length)) else {
            return Err("a malformed view of a storage".into());
        };
        let end = number(offset)?.checked_add(number(length)?);
        if end.is_none_or(|end| end > storage.numel) {
            return Err("a view that leaves its storage".into());
        }
        storage.view_offset = number(offset)?;
    }
    Ok(Object::Storage(Box::new(storage)))
}
