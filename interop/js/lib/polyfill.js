/** js-libp2p needs Promise.withResolvers, which Node has from version 22 on; imported before everything else. */
Promise.withResolvers ??= () => {
  const deferred = {}
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}
