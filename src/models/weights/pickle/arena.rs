//! What pickles are made of.

use super::globals::Global;
use crate::models::weights::DType;

/// Number of an object in its [`Arena`].
pub(in crate::models::weights) type Id = u32;

/// GPT2-Large makes 10,000.
pub(super) const MAX_OBJECTS: usize = 1 << 18;

/// All objects a pickle made.
#[derive(Default)]
pub(in crate::models::weights) struct Arena {
    objects: Vec<Object>,
}

/// One object. Containers hold the numbers of what is in them.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::weights) enum Object {
    None,
    Bool(bool),
    Int(i64),
    /// Too large for 64 bits, little-endian two's complement.
    BigInt(Vec<u8>),
    Float,
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// An object of one of TorchScript's classes, and the dictionary of its attributes once it has one.
    Instance(Option<Id>),
    Storage(Box<Storage>),
    Tensor(Box<Tensor>),
    /// Something allowed that carries no weights, such as a device.
    Opaque,
}

/// Where a tensor's elements are, by the file's own key. Nothing of it is checked against the file yet.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::weights) struct Storage {
    pub key: String,
    /// None where the storage is bytes without a type.
    pub dtype: Option<DType>,
    /// Elements the pickle claims.
    pub numel: u64,
    /// A legacy view: where in the storage `key` this one starts, in elements.
    pub view_offset: u64,
}

/// A tensor as the pickle describes it. Nothing of it is checked against the file yet.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::weights) struct Tensor {
    pub storage: Storage,
    pub dtype: DType,
    /// In elements.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
}

impl Arena {
    /// `None` once there are more objects than any state_dict has.
    pub fn add(&mut self, object: Object) -> Option<Id> {
        let id = Id::try_from(self.objects.len()).ok().filter(|_| self.objects.len() < MAX_OBJECTS)?;
        self.objects.push(object);
        Some(id)
    }

    pub fn get(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter()
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.objects[id as usize]
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a dictionary, or the attributes of an object.
    pub fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Object::Dict(items) => Some(items),
            Object::Instance(Some(state)) => match self.get(*state) {
                Object::Dict(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }
}
