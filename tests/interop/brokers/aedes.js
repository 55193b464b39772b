// An aedes on a port of the loopback: node aedes.js PORT [PREFIX]; topics that begin with PREFIX may not be published to.
const net = require('net')
const path = require('path')
const aedes = require(require.resolve('aedes', { paths: [process.env.NODE_PATH, path.join(process.env.NODE_PATH, '..')] }))

async function main () {
  const [port, prefix] = [Number(process.argv[2]), process.argv[3]]
  const make = aedes.Aedes && aedes.Aedes.createBroker
  const broker = make ? await aedes.Aedes.createBroker() : aedes()
  if (prefix) {
    broker.authorizePublish = (client, packet, done) =>
      done(packet.topic.startsWith(prefix) ? new Error('wrong topic') : null)
  }
  broker.on('clientError', (client, error) => console.error('clientError', client.id, error.message))
  broker.on('connectionError', (client, error) => console.error('connectionError', error.message))
  net.createServer(broker.handle).listen(port, '127.0.0.1')
}

main()
