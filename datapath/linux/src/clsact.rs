//! The filters at a clsact hook: our programs on kernels without TCX, and filters of other owners on any kernel.

use aya::programs::{
    ProgramError, TcAttachType,
    links::Link as _,
    tc::{SchedClassifierLink, TcHandle},
};
use futures::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use crate::{
    error::DatapathError,
    netlink::{Link, Netlink, failed},
};

/// A filter at a hook.
pub(crate) struct Filter {
    /// Its program's name, or its kind where it has none.
    pub name: String,
    /// Its program.
    pub program_id: Option<u32>,
}

/// The ids of the programs of all BPF filters at a hook.
pub(crate) async fn programs(
    netlink: &Netlink,
    link: &Link,
    direction: TcAttachType,
) -> Result<Vec<u32>, DatapathError> {
    let filters = filters(netlink, link, direction).await?;
    Ok(filters.into_iter().filter_map(|filter| filter.program_id).collect())
}

/// All filters at a hook.
pub(crate) async fn filters(
    netlink: &Netlink,
    link: &Link,
    direction: TcAttachType,
) -> Result<Vec<Filter>, DatapathError> {
    let request = netlink.handle.traffic_filter(link.index as i32).get();
    let request = match direction {
        TcAttachType::Egress => request.egress(),
        _ => request.ingress(),
    };
    let what = format!("list filters of {}", link.name);
    let messages: Vec<_> = request.execute().try_collect().await.map_err(|error| failed(what, error))?;
    Ok(messages.iter().filter_map(filter).collect())
}

/// The kernel lists the head of each priority, too, which has no options.
fn filter(message: &TcMessage) -> Option<Filter> {
    let mut kind = String::new();
    let mut options = None;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(text) => kind.clone_from(text),
            TcAttribute::Options(found) => options = Some(found),
            _ => {}
        }
    }
    let mut filter = Filter { name: kind, program_id: None };
    for option in options? {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program_id = Some(*id),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
            _ => {}
        }
    }
    Some(filter)
}

/// Deletes the filter with this priority and handle.
pub(crate) fn remove(
    device: &str,
    direction: TcAttachType,
    priority: u16,
    handle: TcHandle,
) -> Result<(), DatapathError> {
    let fail =
        |error: ProgramError| DatapathError::program("at clsact", format!("detach from {device}"), error);
    let link = SchedClassifierLink::attached(device, direction, priority, handle, None);
    let link = link.map_err(|source| fail(ProgramError::IOError(source)))?;
    link.detach().map_err(fail)
}
