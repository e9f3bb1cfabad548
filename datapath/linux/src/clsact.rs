//! Which of our programs works at a clsact hook, for kernels without TCX.

use aya::programs::TcAttachType;
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
