//! Which execution provider each node of a session ended up on.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::fmt;

use ort::AsPointer;

/// Where the nodes of one session compute, as ONNX Runtime assigned them (before its own fusions on the CPU).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The session's name.
    pub model: String,
    /// The provider that was asked for.
    pub wanted: &'static str,
    /// Nodes on it.
    pub num_there: usize,
    /// Nodes elsewhere: (provider, operator) and the nodes' names.
    pub elsewhere: BTreeMap<(String, String), Vec<String>>,
}

impl Placement {
    /// Of a model that is computed in one place.
    pub(super) fn whole(model: &str, there: &'static str, num_nodes: usize) -> Self {
        Self { model: model.into(), wanted: there, num_there: num_nodes, elsewhere: BTreeMap::new() }
    }

    /// Reads the assignment of a session that was made with [`RECORD`] set.
    pub(super) fn read(model: &str, wanted: &'static str, session: &ort::session::Session) -> ort::Result<Self> {
        let mut placement = Self { model: model.into(), wanted, num_there: 0, elsewhere: BTreeMap::new() };
        let api = ort::api();
        let (mut subgraphs, mut num_subgraphs) = (std::ptr::null(), 0);
        // SAFETY: the session is alive; it owns everything that is returned here, and nothing is kept beyond this function.
        unsafe {
            check((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut subgraphs, &raw mut num_subgraphs))?;
            for &subgraph in slice(subgraphs, num_subgraphs) {
                let provider = text(|out| (api.EpAssignedSubgraph_GetEpName)(subgraph, out))?;
                let (mut nodes, mut num_nodes) = (std::ptr::null(), 0);
                check((api.EpAssignedSubgraph_GetNodes)(subgraph, &raw mut nodes, &raw mut num_nodes))?;
                if provider == wanted {
                    placement.num_there += num_nodes;
                    continue;
                }
                for &node in slice(nodes, num_nodes) {
                    let operator = text(|out| (api.EpAssignedNode_GetOperatorType)(node, out))?;
                    let name = text(|out| (api.EpAssignedNode_GetName)(node, out))?;
                    placement.elsewhere.entry((provider.clone(), operator)).or_default().push(name);
                }
            }
        }
        Ok(placement)
    }
}

/// The session option that makes the assignment readable.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} nodes on {}", self.model, self.num_there, self.wanted)?;
        if self.elsewhere.is_empty() {
            return f.write_str(", none elsewhere");
        }
        for ((provider, operator), names) in &self.elsewhere {
            write!(f, "\n  on {provider}: {} {operator} ({})", names.len(), names.join(", "))?;
        }
        Ok(())
    }
}

fn check(status: ort::sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes straight from a call and is released there.
    unsafe { ort::Error::result_from_status(status) }
}

/// # Safety
/// `pointer` is null, or to `length` elements that live while the result does.
unsafe fn slice<'a, T>(pointer: *const T, length: usize) -> &'a [T] {
    if pointer.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(pointer, length) }
}

/// A string that a call puts behind a pointer, copied.
fn text(get: impl FnOnce(*mut *const c_char) -> ort::sys::OrtStatusPtr) -> ort::Result<String> {
    let mut pointer = std::ptr::null();
    check(get(&raw mut pointer))?;
    if pointer.is_null() {
        return Ok(String::new());
    }
    // SAFETY: ONNX Runtime's strings end in NUL.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_elsewhere_are_named() {
        let mut placement =
            Placement { model: "mapper".into(), wanted: "CUDAExecutionProvider", num_there: 7, elsewhere: BTreeMap::new() };
        assert_eq!(placement.to_string(), "mapper: 7 nodes on CUDAExecutionProvider, none elsewhere");
        placement.elsewhere.insert(("CPUExecutionProvider".into(), "Gather".into()), vec!["a/Gather".into(), "b/Gather".into()]);
        assert_eq!(
            placement.to_string(),
            "mapper: 7 nodes on CUDAExecutionProvider\n  on CPUExecutionProvider: 2 Gather (a/Gather, b/Gather)"
        );
    }
}
