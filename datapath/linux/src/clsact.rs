//! Which programs work at a clsact hook, and how one is taken away, for kernels without TCX.

use aya::programs::{
    ProgramError, TcAttachType,
    links::Link as _,
    tc::{SchedClassifierLink, TcHandle},
};
use futures::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcOption};

use crate::{
    error::DatapathError,
    netlink::{Link, Netlink, failed},
};

/// The ids of the programs of all BPF filters at a hook.
pub(crate) async fn programs(
    netlink: &Netlink,
    link: &Link,
    direction: TcAttachType,
) -> Result<Vec<u32>, DatapathError> {
    let request = netlink.handle.traffic_filter(link.index as i32).get();
    let request = match direction {
        TcAttachType::Egress => request.egress(),
        _ => request.ingress(),
    };
    let what = format!("list filters of {}", link.name);
    let filters: Vec<_> = request.execute().try_collect().await.map_err(|error| failed(what, error))?;
    let options =
        filters.iter().flat_map(|filter| &filter.attributes).filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    Ok(options
        .flatten()
        .filter_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        })
        .collect())
}

/// Takes away the filter with this priority and handle.
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
