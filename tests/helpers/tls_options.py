"""What an edge and a device are told of their certificates."""


def tls(certificates, mutual):
    edge = {"cert": str(certificates.certificate("edge-0")), "cert-key": str(certificates.key("edge-0"))}
    device = {"ca": str(certificates.ca), "steps": "tcp"}  # by Unix sockets there would be no TLS
    if mutual:
        edge["client-ca"] = str(certificates.ca)
        device["cert"] = str(certificates.certificate("device-0"))
        device["cert-key"] = str(certificates.key("device-0"))
    return edge, device
